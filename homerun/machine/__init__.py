"""What this machine is and does: CPUs, memory, disks through psutil, GPUs through NVML. Knows nothing of runs.

A machine without an NVIDIA driver is a machine without GPUs, never an error.
"""

import contextlib
import os
import re
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """One GPU as NVML tells it. capability: (9, 0) for Hopper. links: active NVLinks. None: the GPU does not say."""

    name: str
    memory_bytes: int
    used_bytes: int = 0
    capability: tuple[int, int] | None = None
    ecc_errors: int | None = None  # uncorrected, since the driver was loaded
    rows_pending: bool = False  # memory rows wait for a reset to be remapped, or could not be
    processes: tuple[int, ...] = ()
    links: int | None = None
    throttled: bool = False  # by heat or power brake, not by its ordinary power cap


@dataclass(frozen=True)
class Gpus:
    """All GPUs, the driver ("570.86.15") and the newest CUDA that it can serve ((12, 8))."""

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: tuple[int, int] | None = None


def _nvml() -> Any:
    """The initialised NVML module, or None where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


@dataclass
class _Ask:
    """Calls NVML; what a GPU or driver does not support comes back as the default."""

    nvml: Any

    def __call__(self, call: Callable[..., Any], *arguments: Any, default: Any = None) -> Any:
        try:
            found = call(*arguments)
        except self.nvml.NVMLError:
            return default
        return found.decode() if isinstance(found, bytes) else found


def read_gpus() -> Gpus:
    """Ask NVML once; takes some milliseconds a GPU."""
    nvml = _nvml()
    if nvml is None:
        return Gpus()
    ask = _Ask(nvml)
    cuda = ask(nvml.nvmlSystemGetCudaDriverVersion_v2)
    count = ask(nvml.nvmlDeviceGetCount, default=0)
    handles = [ask(nvml.nvmlDeviceGetHandleByIndex, index) for index in range(count)]
    return Gpus(
        gpus=tuple(_read_gpu(nvml, ask, handle) for handle in handles if handle is not None),
        driver=ask(nvml.nvmlSystemGetDriverVersion),
        cuda=(cuda // 1000, cuda % 1000 // 10) if cuda else None,
    )


def _read_gpu(nvml: Any, ask: _Ask, handle: Any) -> Gpu:
    memory = ask(nvml.nvmlDeviceGetMemoryInfo, handle)
    rows = ask(nvml.nvmlDeviceGetRemappedRows, handle)  # corrected, uncorrected, pending, failed
    reasons = ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle, default=0)
    bad = nvml.nvmlClocksThrottleReasonHwThermalSlowdown | nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown
    links = [ask(nvml.nvmlDeviceGetNvLinkState, handle, link) for link in range(nvml.NVML_NVLINK_MAX_LINKS)]
    return Gpu(
        name=ask(nvml.nvmlDeviceGetName, handle, default="unknown GPU"),
        memory_bytes=memory.total if memory else 0,
        used_bytes=memory.used if memory else 0,
        capability=ask(nvml.nvmlDeviceGetCudaComputeCapability, handle),
        ecc_errors=ask(
            nvml.nvmlDeviceGetTotalEccErrors, handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        ),
        rows_pending=bool(rows and (rows[2] or rows[3])),
        processes=tuple(process.pid for process in ask(nvml.nvmlDeviceGetComputeRunningProcesses, handle, default=())),
        links=None if all(state is None for state in links) else sum(1 for state in links if state),
        throttled=bool(reasons & bad),
    )


def describe() -> dict[str, Any]:
    """The machine in an `attempt.begin` event."""
    found = read_gpus()
    return {
        "host": socket.gethostname(),
        "cpus": cpus(),
        "memory_bytes": memory_bytes(),
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.memory_bytes} for gpu in found.gpus],
        "driver": found.driver,
        "cuda": ".".join(map(str, found.cuda)) if found.cuda else None,
        "image": os.environ.get("HOMERUN_IMAGE"),
    }


def cpus() -> int:
    """CPUs that this process may use: its affinity, cut down to the container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, max(1, -(-int(quota) // int(period))))
    return count


def memory_bytes() -> int:
    """Memory of the machine, or the container's limit where that is less."""
    total = psutil.virtual_memory().total
    with contextlib.suppress(OSError, ValueError):
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def sample(folder: Path) -> dict[str, Any]:
    """The data of a `machine` event: use of CPU (percent of all), memory, the disk of `folder`, each GPU."""
    found: dict[str, Any] = {
        "cpu": psutil.cpu_percent(None),
        "memory_bytes": psutil.virtual_memory().used,
        "disk_free_bytes": psutil.disk_usage(str(folder)).free,
        "gpus": [],
    }
    nvml = _nvml()
    if nvml is None:
        return found
    ask = _Ask(nvml)
    for index in range(ask(nvml.nvmlDeviceGetCount, default=0)):
        handle = ask(nvml.nvmlDeviceGetHandleByIndex, index)
        if handle is None:
            continue
        use, memory = ask(nvml.nvmlDeviceGetUtilizationRates, handle), ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        power = ask(nvml.nvmlDeviceGetPowerUsage, handle)
        found["gpus"].append(
            {
                "util": use.gpu if use else None,
                "memory_bytes": memory.used if memory else None,
                "power_w": round(power / 1000) if power is not None else None,
                "temperature_c": ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            }
        )
    return found


def xid_errors() -> list[str] | None:
    """NVIDIA Xid lines of the kernel's log, newest last; None where it may not be read (most containers)."""
    try:
        done = subprocess.run(["dmesg"], capture_output=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return [line.strip() for line in re.findall(r"NVRM: Xid.*", done.stdout.decode(errors="replace"))]
