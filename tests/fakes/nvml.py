"""A stand-in for pynvml: boxes of any GPUs, in this process or in one that `on_path` prepares."""

from pathlib import Path
from types import SimpleNamespace

GIB = 1 << 30
ROOT = Path(__file__).parents[2]
# {GiB of memory: (name, capability)}
BOXES = {
    24: ("NVIDIA GeForce RTX 4090", (8, 9)),
    40: ("NVIDIA A100-SXM4-40GB", (8, 0)),
    80: ("NVIDIA H100 80GB HBM3", (9, 0)),
    141: ("NVIDIA H200", (9, 0)),
}


TORCHRUN = """\
#!/bin/bash
while [ "$1" != -m ]; do shift; done
module=$2; shift 2
[ "$1" != -- ] || shift
exec python -m "$module" "$@"
"""


class NVMLError(Exception):
    pass


def nvml(count: int, gib: int, driver: str = "570.86.15") -> SimpleNamespace:
    """The functions and constants that homerun/machine uses, telling of `count` good GPUs."""
    name, capability = BOXES[gib]

    def unsupported(*_):
        raise NVMLError

    memory = SimpleNamespace(total=gib * GIB, used=400 << 20, free=0)
    return SimpleNamespace(
        NVMLError=NVMLError,
        NVML_MEMORY_ERROR_TYPE_UNCORRECTED=1,
        NVML_VOLATILE_ECC=0,
        NVML_NVLINK_MAX_LINKS=18,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlClocksThrottleReasonHwThermalSlowdown=0x40,
        nvmlClocksThrottleReasonHwPowerBrakeSlowdown=0x80,
        nvmlSystemGetDriverVersion=lambda: driver,
        nvmlSystemGetCudaDriverVersion_v2=lambda: 12080,
        nvmlDeviceGetCount=lambda: count,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: name.encode(),
        nvmlDeviceGetMemoryInfo=lambda handle: memory,
        nvmlDeviceGetCudaComputeCapability=lambda handle: capability,
        nvmlDeviceGetTotalEccErrors=unsupported if "GeForce" in name else lambda *_: 0,
        nvmlDeviceGetRemappedRows=unsupported if "GeForce" in name else lambda handle: (0, 0, 0, 0),
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 0x4,  # its ordinary power cap
        nvmlDeviceGetNvLinkState=unsupported if "GeForce" in name else lambda handle, link: 1,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: [],
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=97),
        nvmlDeviceGetPowerUsage=lambda handle: 650_400,
        nvmlDeviceGetTemperature=lambda handle, which: 61,
    )


def on_path(folder: Path, count: int, gib: int) -> dict[str, str]:
    """The environment in which another process sees such a box, and a `torchrun` that starts one plain python."""
    (folder / "bin").mkdir(parents=True)
    (folder / "pynvml.py").write_text(
        f"from tests.fakes.nvml import nvml\nglobals().update(vars(nvml({count}, {gib})))\n"
    )
    torchrun = folder / "bin" / "torchrun"
    torchrun.write_text(TORCHRUN)
    torchrun.chmod(0o755)
    return {"PYTHONPATH": f"{folder}:{ROOT}", "HOMERUN_SCRIPT_PATH": str(folder / "bin"), "NPROC_PER_NODE": "auto"}
