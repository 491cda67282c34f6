"""Stage B of preflight: run by upstream's own Python, as soon as that exists, before any training is paid for.

    .venv/bin/python gates.py --nproc 8

Standard library and upstream's torch only. Prints `-- NAME` as a gate begins, and one JSON object as it ends: {name,
verdict, seen, hint, seconds}.
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

LIMIT_SECONDS = 120
BEGUN = "-- "  # before each gate, so that one that hangs or dies can be named


def gate_headers(nproc):
    """Triton compiles against Python.h of the base interpreter."""
    header = Path(sysconfig.get_path("include"), "Python.h")
    if header.exists():
        return "pass", str(header), ""
    verdict = "fail" if nproc else "warn"
    return (
        verdict,
        f"no {header}",
        "Install Python's headers: `apt-get install python3-dev`, or let uv bring its Python",
    )


def gate_torch(nproc):
    import torch

    seen = f"torch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.device_count()} GPUs"
    if torch.cuda.device_count() < nproc:
        return (
            "fail",
            f"{seen}, {nproc} wanted",
            "The driver is too old for this torch, or CUDA_VISIBLE_DEVICES hides GPUs",
        )
    for index in range(nproc):
        (torch.ones(256, 256, device=f"cuda:{index}") @ torch.ones(256, 256, device=f"cuda:{index}")).sum().item()
    return "pass", seen, ""


def gate_compile(nproc):
    if not nproc:
        return None  # half a minute on a CPU, where no rent is saved by it
    import torch

    if os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        return "pass", "torch.compile is switched off (TORCHDYNAMO_DISABLE=1)", ""
    try:
        found = torch.compile(lambda x: (x * 2 + 1).relu().sum())(torch.ones(64, device="cuda")).item()
    except Exception as error:
        why = str(error).strip().splitlines()[0][:200]
        return "fail", f"torch.compile fails: {why}", "Install gcc and python3-dev"
    return (
        ("pass", "torch.compile works", "")
        if found == 192
        else ("fail", f"wrong result {found}", "Take another machine")
    )


def gate_nccl(nproc):
    """All GPUs add up one tensor, with a process each, as torchrun would have it."""
    if nproc < 2:
        return None
    worker = (
        "import os, torch, torch.distributed as d\n"
        "r = int(os.environ['LOCAL_RANK']); torch.cuda.set_device(r); d.init_process_group('nccl')\n"
        "x = torch.ones(1 << 24, device='cuda') * r; d.all_reduce(x)\n"
        "assert x[0].item() == sum(range(d.get_world_size())); d.destroy_process_group()\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "reduce.py")
        script.write_text(worker)
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={nproc}",
            str(script),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            hint = "NCCL hangs: try NCCL_P2P_DISABLE=1 or `docker run --shm-size=1g`, or take another machine"
            return "fail", f"{nproc} GPUs did not finish one all-reduce in {LIMIT_SECONDS} s", hint
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "Error" in line or "NCCL" in line]
        why = lines[-1].strip()[:200] if lines else f"exit {done.returncode}"
        return "fail", why, "Try NCCL_DEBUG=INFO, `docker run --shm-size=1g`, or take another machine"
    return "pass", f"{nproc} GPUs talk to each other", ""


def gate_attention(nproc):
    """The kernel that upstream wants loads and runs; it falls back in silence to something several times slower."""
    if not nproc or not Path("nanochat/flash_attention.py").exists():
        return None
    sys.path.insert(0, str(Path.cwd()))
    import torch
    from nanochat import flash_attention

    major = torch.cuda.get_device_capability()[0]
    if not getattr(flash_attention, "USE_FA3", flash_attention.HAS_FA3):  # loaded, and chosen for this dtype
        hint = "It comes from huggingface.co at run time: check the network, or fill HF_HOME; it wants bfloat16"
        return (
            "fail" if major == 9 else "warn",
            "flash attention is not available or not used: training will be slow",
            hint,
        )
    q = torch.randn(1, 256, 4, 128, device="cuda", dtype=torch.bfloat16)
    try:
        out = flash_attention.flash_attn.flash_attn_func(q, q, q, causal=True, window_size=(-1, 0))
        finite = bool(out.isfinite().all())
    except Exception as error:
        return (
            "fail",
            f"the kernel loads but does not run: {str(error).splitlines()[0][:160]}",
            "Use another GPU or --ref",
        )
    return ("pass", "the attention kernel runs", "") if finite else ("fail", "it gives NaN", "Take another machine")


GATES = {
    "python-headers": gate_headers,
    "torch": gate_torch,
    "torch-compile": gate_compile,
    "nccl": gate_nccl,
    "flash-attention": gate_attention,
}


def main():
    sys.path.pop(0)  # this file's own folder: its neighbours' names must not hide modules of upstream
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nproc", type=int, required=True, help="GPUs that the run will use; 0 for the CPU")
    nproc = parser.parse_args().nproc
    for name, gate in GATES.items():
        print(f"{BEGUN}{name}", flush=True)
        begun = time.monotonic()
        try:
            found = gate(nproc)
        except Exception as error:
            found = (
                "fail",
                f"{type(error).__name__}: {str(error).strip()[:200]}",
                "Upstream's environment is not whole",
            )
        if found:
            verdict, seen, hint = found
            seconds = round(time.monotonic() - begun, 3)
            answer = {"name": name, "verdict": verdict, "seen": seen, "hint": hint, "seconds": seconds}
            print(json.dumps(answer), flush=True)
            if name == "torch" and verdict == "fail":
                return  # the gates behind it would only say the same, slower


if __name__ == "__main__":
    main()
