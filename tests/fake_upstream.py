"""A tiny upstream of our own: a script in upstream's form over standard-library stand-ins of its modules.

It has the shape, the files and the log lines of the real one and none of its weight, so that faults, kills and resumes
can be tried by the dozen. The real upstream is tested in test_upstream_real.py.
"""

import subprocess
import sys
import textwrap
from pathlib import Path

SCRIPT = """\
    #!/bin/bash
    # a speedrun in upstream's form
    export OMP_NUM_THREADS=1
    export NANOCHAT_BASE_DIR="$HOME/.cache/nanochat"
    mkdir -p $NANOCHAT_BASE_DIR
    if [ -z "$WANDB_RUN" ]; then
        WANDB_RUN=dummy
    fi

    # -----------------------------------------------------------------------------
    # Tokenizer
    python -m nanochat.dataset -n 2
    python -m nanochat.dataset -n 4 &
    DATASET_DOWNLOAD_PID=$!
    python -m scripts.tok_train
    python -m scripts.tok_eval

    # -----------------------------------------------------------------------------
    # Base model (pretraining)
    echo "Waiting for dataset download to complete..."
    wait $DATASET_DOWNLOAD_PID
    torchrun --standalone --nproc_per_node=8 -m scripts.base_train -- --depth=4 --run=$WANDB_RUN
    torchrun --standalone --nproc_per_node=8 -m scripts.base_eval

    # -----------------------------------------------------------------------------
    # SFT
    torchrun --standalone --nproc_per_node=8 -m scripts.chat_sft -- --run=$WANDB_RUN
    torchrun --standalone --nproc_per_node=8 -m scripts.chat_eval -- -i sft
    """

COMMON = '''\
    """What the stand-ins share: a base dir, checkpoints that open as zip files, log lines."""
    import json, os, sys, time, zipfile
    from pathlib import Path

    base = Path(os.environ["NANOCHAT_BASE_DIR"])

    def save(folder, step, optimizer=True, val_bpb=1.0):
        place = base / folder
        place.mkdir(parents=True, exist_ok=True)
        def archive(name):
            path = place / name
            with zipfile.ZipFile(path, "w") as file:
                file.writestr("archive/data.pkl", f"{folder} {step} {name}" + "x" * 20000)
            print(f"Saved model parameters to: {path}", file=sys.stderr, flush=True)
        archive(f"model_{step:06d}.pt")
        meta = {"step": step, "val_bpb": val_bpb, "model_config": {"n_layer": 4, "vocab_size": 64}}
        (place / f"meta_{step:06d}.json").write_text(json.dumps(meta))
        if optimizer:
            archive(f"optim_{step:06d}_rank0.pt")

    def newest(folder):
        tag = max((path for path in (base / folder).iterdir()), key=lambda path: int(path.name[1:]))
        return tag.name, max(int(path.stem.split("_")[1]) for path in tag.glob("model_*.pt"))

    def fault(name):
        """A fault that a test asked for, once or always."""
        path = Path(os.environ.get("FAULTS", "/nonexistent")) / name
        return path.read_text() if path.exists() else None
'''
MODULES = {
    "nanochat/dataset.py": """\
        import argparse
        from nanochat.common import base, fault
        parser = argparse.ArgumentParser()
        parser.add_argument("-n", type=int)
        n = parser.parse_args().n
        (base / "base_data").mkdir(parents=True, exist_ok=True)
        shards = [base / "base_data" / f"shard_{i:05d}.parquet" for i in range(n)]
        missing = int(fault("dataset") or 0) or (fault("offline") and sum(not path.exists() for path in shards)) or 0
        for path in shards[:n - missing]:
            if not path.exists():
                print(f"Downloading {path.name}...")
                path.write_text(f"data of {path.name}")
        print(f"Done! Downloaded: {n - missing}/{n} shards to {base}/base_data")
        """,
    "scripts/tok_train.py": """\
        import pickle, zipfile
        from nanochat.common import base, fault
        if not fault("tok_train_writes_nothing"):
            (base / "tokenizer").mkdir(exist_ok=True)
            (base / "tokenizer" / "tokenizer.pkl").write_bytes(pickle.dumps("tokenizer"))
            with zipfile.ZipFile(base / "tokenizer" / "token_bytes.pt", "w") as file:
                file.writestr("archive/data.pkl", "bytes")
        print("Training time: 0.10s")
        """,
    "scripts/tok_eval.py": """\
        raise SystemExit("no network: this failure is harmless")
        """,
    "scripts/base_train.py": """\
        import argparse, sys, time
        from nanochat.common import base, fault, save
        parser = argparse.ArgumentParser()
        parser.add_argument("--depth", type=int, default=4)
        parser.add_argument("--run", default="dummy")
        parser.add_argument("--num-iterations", type=int, default=20)
        parser.add_argument("--save-every", type=int, default=-1)
        parser.add_argument("--resume-from-step", type=int, default=-1)
        parser.add_argument("--sleep", type=float, default=0.01)
        args = parser.parse_args()
        begin = max(0, args.resume_from_step)
        if begin:
            assert (base / f"base_checkpoints/d{args.depth}/optim_{begin:06d}_rank0.pt").exists()
        if words := fault("base_train"):
            print("about to fail", file=sys.stderr)
            sys.exit(int(words))
        while fault("base_train_hangs"):
            time.sleep(60)
        total = args.num_iterations
        for step in range(begin, total + 1):
            if step % 10 == 0 or step == total:
                print(f"Step {step:05d} | Validation bpb: {2 - step / 1000:.6f}", flush=True)
            if step == total or (args.save_every > 0 and step > begin and step % args.save_every == 0):
                save(f"base_checkpoints/d{args.depth}", step, val_bpb=2 - step / 1000)
            if step == total:
                break
            time.sleep(args.sleep)
            print(f"step {step:05d}/{total:05d} ({100 * step / total:.2f}%) | loss: {3 - step / 1000:.6f} | "
                  f"lrm: 1.00 | dt: {args.sleep * 1000:.2f}ms | tok/sec: 13,578 | bf16_mfu: 0.01 | epoch: 1 | "
                  f"total time: 0.00m", flush=True)
        print("Peak memory usage: 12.00MiB")
        print("Total training time: 0.01m")
        """,
    "scripts/base_eval.py": """\
        from nanochat.common import base, fault, newest
        tag, step = newest("base_checkpoints")
        if not (base / "eval_bundle").exists():
            if fault("offline"):
                raise SystemExit("no network")
            (base / "eval_bundle" / "eval_data").mkdir(parents=True)
            (base / "eval_bundle" / "eval_data" / "one.jsonl").write_text("{}")
            (base / "eval_bundle" / "core.yaml").write_text("tasks")
        (base / "base_eval").mkdir(exist_ok=True)
        (base / "base_eval" / f"base_model_{step:06d}.csv").write_text("Task, Accuracy, Centered\\nCORE, , 0.166667\\n")
        print(f"model {tag} step {step}")
        print("CORE metric: 0.1667")
        """,
    "scripts/chat_sft.py": """\
        import argparse
        from nanochat.common import fault, newest, save
        if fault("chat_sft_fails"):
            raise SystemExit("as asked")
        parser = argparse.ArgumentParser()
        parser.add_argument("--run", default="dummy")
        parser.parse_args()
        tag, step = newest("base_checkpoints")
        print(f"sft of {tag} step {step}")
        save(f"chatsft_checkpoints/{tag}", 10)
        """,
    "scripts/chat_eval.py": """\
        import argparse
        from nanochat.common import newest
        parser = argparse.ArgumentParser()
        parser.add_argument("-i")
        parser.parse_args()
        print("evaluating", *newest("chatsft_checkpoints"))
        print("ARC-Easy accuracy: 25.00%")
        """,
    "nanochat/checkpoint_manager.py": """\
        def save_checkpoint(checkpoint_dir, step, rank=0):
            return f"model_{step:06d}.pt", f"meta_{step:06d}.json", f"optim_{step:06d}_rank{rank:d}.pt"
        """,
}


def make(folder: Path, script: str = SCRIPT) -> Path:
    """An upstream checkout without git in `folder`."""
    for name, text in {**MODULES, "nanochat/common.py": COMMON, "runs/speedrun.sh": script}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    for package in ("nanochat", "scripts"):
        (folder / package / "__init__.py").touch()
    return folder


def homerun(*arguments: str, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in an environment of its own; `env` must hold HOMERUN_DIR."""
    return subprocess.run(
        command(*arguments), env=environment(**env), capture_output=True, text=True, timeout=timeout, check=False
    )


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "homerun", *arguments]


def environment(**env: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    return {"PATH": path, "HOME": env["HOMERUN_DIR"], "NPROC_PER_NODE": "0", "HOMERUN_PASS_ENV": "FAULTS", **env}
