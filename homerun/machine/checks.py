"""What preflight asks of the machine. Each check answers (verdict, seen, hint); None where it does not apply."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from homerun.machine import GIB, Gpus, memory_bytes

Finding = tuple[str, str, str]

OLDEST_PYTHON = (3, 11)
OLDEST_BASH = (5, 0)  # the tracer reads EPOCHREALTIME
DRIVER_FAIL, DRIVER_WARN = 525, 570  # oldest for CUDA 12 at all, and the one that CUDA 12.8 was made for
SLOW_WRITE = 100e6  # bytes a second; a d24 checkpoint of 11 GB would take two minutes
WRITE_BYTES, WRITE_SECONDS = 256 << 20, 3.0
IDLE_BYTES = 2 * GIB  # drivers and contexts hold some hundred MB of a GPU that nobody uses
NVLINKED = ("A100-SXM", "H100 80GB HBM3", "H200", "B200", "B300")
OTHER_BOX = "Take another machine: this one is not what you pay for"


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    seen = f"Python {'.'.join(map(str, version))} at {sys.executable}"
    if version < OLDEST_PYTHON:
        return "fail", seen, "homerun needs Python 3.11 or newer: `apt-get install python3.11`"
    return "pass", seen, ""


def check_bash() -> Finding:
    try:
        done = subprocess.run(
            ["bash", "-c", "echo ${BASH_VERSINFO[0]} ${BASH_VERSINFO[1]}"], capture_output=True, text=True, check=True
        )
        version = tuple(map(int, done.stdout.split()))
    except (OSError, subprocess.SubprocessError, ValueError):
        return "fail", "no bash", "Install it: `apt-get install bash`"
    seen = f"bash {'.'.join(map(str, version))}"
    if version < OLDEST_BASH:
        return "fail", seen, "The script's tracer needs bash 5.0 or newer"
    return "pass", seen, ""


def check_disk(folder: Path, needed: int) -> Finding:
    """Free bytes where the run's folder lies, against what its plan needs."""
    free = psutil.disk_usage(str(folder)).free
    seen = f"{free / 1e9:,.0f} GB free at {folder}, about {needed / 1e9:,.1f} GB needed"
    hint = "Set HOMERUN_DIR to a bigger disk, or rent one"
    if free < needed:
        return "fail", seen, hint
    return ("warn", seen, hint) if free < 1.3 * needed else ("pass", seen, "")


def check_write_speed(folder: Path) -> Finding:
    block, written = os.urandom(4 << 20), 0
    begun = time.monotonic()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            while written < WRITE_BYTES and time.monotonic() - begun < WRITE_SECONDS:
                written += file.write(block)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return "fail", f"{folder} cannot be written ({error.strerror})", "Set HOMERUN_DIR to a folder of yours"
    speed = written / (time.monotonic() - begun)
    seen = f"{speed / 1e6:,.0f} MB/s to {folder}"
    if speed < SLOW_WRITE:
        return "warn", seen, "Checkpoints and data will be slow: set HOMERUN_DIR to a local disk"
    return "pass", seen, ""


def check_gpus(found: Gpus, wanted: int) -> Finding:
    """As many GPUs of one kind as the run wants, under a driver that its CUDA can use."""
    gpus = found.gpus
    if not gpus:
        if wanted:
            return (
                "fail",
                f"no GPU, {wanted} wanted",
                "Start the container with its GPUs, or give --nproc 0 for the CPU",
            )
        return "pass", "no GPU: every phase runs on the CPU", ""
    kinds = sorted({gpu.name for gpu in gpus})
    cuda = f", CUDA {'.'.join(map(str, found.cuda))}" if found.cuda else ""
    seen = f"{len(gpus)} × {', '.join(kinds)}, {gpus[0].memory_bytes / GIB:.0f} GiB, driver {found.driver}{cuda}"
    if len(gpus) < wanted:
        return "fail", seen, f"{wanted} are wanted: give --nproc {len(gpus)}, or take another machine"
    driver = int((found.driver or "0").split(".")[0])
    if driver < DRIVER_FAIL:
        return "fail", seen, f"CUDA 12 needs driver {DRIVER_FAIL} or newer: take another machine"
    if len(kinds) > 1:
        return "warn", seen, "The slowest kind sets the pace of all"
    if driver < DRIVER_WARN:
        return "warn", seen, f"Made for driver {DRIVER_WARN} or newer; this one works by minor-version compatibility"
    return "pass", seen, ""


def check_gpu_health(found: Gpus, xid: list[str] | None) -> Finding | None:
    if not found.gpus:
        return None
    pending = [str(index) for index, gpu in enumerate(found.gpus) if gpu.rows_pending]
    errors = [f"GPU {index}: {gpu.ecc_errors}" for index, gpu in enumerate(found.gpus) if gpu.ecc_errors]
    hot = [str(index) for index, gpu in enumerate(found.gpus) if gpu.throttled]
    if pending:
        return (
            "fail",
            f"GPU {', '.join(pending)} has memory rows that wait for a reset or cannot be remapped",
            OTHER_BOX,
        )
    if errors:
        return "warn", f"uncorrected ECC errors since boot: {', '.join(errors)}", OTHER_BOX
    if xid:
        return "warn", f"{len(xid)} Xid errors in the kernel's log, the last: {xid[-1][:120]}", OTHER_BOX
    if hot:
        return "warn", f"GPU {', '.join(hot)} is throttled by heat or its power supply", OTHER_BOX
    return "pass", "no ECC errors" + ("" if xid is None else ", no Xid errors"), ""


def check_gpus_idle(found: Gpus) -> Finding | None:
    if not found.gpus:
        return None
    busy = [
        f"GPU {index}: {gpu.used_bytes / GIB:.1f} GiB"
        + (f" (pids {', '.join(map(str, gpu.processes))})" if gpu.processes else "")
        for index, gpu in enumerate(found.gpus)
        if gpu.used_bytes > IDLE_BYTES or gpu.processes
    ]
    if not busy:
        return "pass", "nobody else uses the GPUs", ""
    full = any(gpu.used_bytes > gpu.memory_bytes / 10 for gpu in found.gpus)
    return "fail" if full else "warn", "in use: " + "; ".join(busy), "End those processes (`nvidia-smi` shows them)"


def check_links(found: Gpus) -> Finding | None:
    """NVLink between GPUs that are sold with it."""
    gpus = found.gpus
    if len(gpus) < 2 or not all(any(name in gpu.name for name in NVLINKED) for gpu in gpus):
        return None
    if any(gpu.links == 0 for gpu in gpus):
        return "warn", "NVLink is down or not passed through", "Gradients will go over PCIe: take another machine"
    return "pass", "NVLink up", ""


def check_shm(found: Gpus, folder: Path = Path("/dev/shm")) -> Finding | None:
    if len(found.gpus) < 2:
        return None
    try:
        size = psutil.disk_usage(str(folder)).total
    except OSError:
        return "warn", f"no {folder}", "NCCL may need it: `docker run --shm-size=1g`"
    seen = f"{folder} has {size / GIB:.2f} GiB"
    if size < GIB:
        return "warn", seen, "`docker run --shm-size=1g`, or NCCL_SHM_DISABLE=1 if NCCL fails"
    return "pass", seen, ""


def check_memory(found: Gpus) -> Finding:
    """Host memory: the tokenizer's training and 8 data loaders want some; a checkpoint passes through it."""
    total, needed = memory_bytes(), (8 + 4 * len(found.gpus)) * GIB if found.gpus else 2 * GIB
    seen = f"{total / GIB:,.0f} GiB of memory"
    if total < needed:
        return "warn", seen, f"Under {needed / GIB:.0f} GiB a phase may be killed for memory"
    return "pass", seen, ""


def check_compiler(found: Gpus) -> Finding:
    """A C compiler that works: torch.compile builds with it when a run begins."""
    hint = "Install one: `apt-get install gcc libc6-dev`, and python3-dev"
    verdict = "fail" if found.gpus else "warn"
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return verdict, "no C compiler", hint
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "try.c")
        source.write_text('#include <stdio.h>\nint main(void) { return puts("") < 0; }\n')
        done = subprocess.run([compiler, source, "-o", Path(folder, "try")], capture_output=True, text=True)
    if done.returncode:
        return verdict, f"{compiler} fails: {done.stderr.strip()[-160:]}", hint
    return "pass", compiler, ""


def check_port(port: int, bound: bool = False) -> Finding | None:
    """Whether the page's port can be bound. bound: we have it already, or no page is wanted."""
    if bound or port == 0:
        return None
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError as error:
            return "fail", f"port {port}: {error.strerror}", "Set HOMERUN_PORT to a free one"
    return "pass", f"port {port} is free", ""
