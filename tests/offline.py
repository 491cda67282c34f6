"""Everything that the real upstream wants from the network, from disk: for tests that run it on a CPU, offline.

`build_kit(folder)` makes, once, stand-ins for `uv` and `curl`, and small data of our own in the formats that upstream
reads. `environment(kit)` and `PHASE_ARGS[generation]` are the rest. The stand-in `uv` seeds the script's base dir, as
it is the first command of every version of the script.
"""

import csv
import json
import os
import random
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

GENERATIONS = {"G1": "7031985", "G2": "b4e6763", "G3": "92d63d4"}
SHARDS = {"base_data": [*range(240)], "base_data_climbmix": [*range(1000), 6542]}  # miniseries.sh wants 1,000

UV = """\
    #!/bin/bash
    # stands in for uv: makes a .venv whose python is the tests' own, and seeds the base dir
    kit=$(dirname "$(dirname "$(readlink -f "$0")")")
    mkdir -p .venv/bin "$HOME/.cache/nanochat"
    if [ ! -e "$kit/empty" ]; then  # where a test puts it, nothing is here and nothing can be had
        cp -aln "$kit/base/." "$HOME/.cache/nanochat/"
    fi
    ln -sfn {python} .venv/bin/python
    cp -f "$kit/activate" .venv/bin/activate
    sed -i "s|@VENV@|$PWD/.venv|" .venv/bin/activate
    """
CURL = """\
    #!/bin/bash
    # stands in for curl: the Rust installer as a script that installs nothing, and downloads from the kit
    kit=$(dirname "$(dirname "$(readlink -f "$0")")")
    case "$*" in
      *rustup*) echo 'mkdir -p "$HOME/.cargo"; touch "$HOME/.cargo/env"' ;;
      *identity_conversations*) cp "$kit/base/identity_conversations.jsonl" "$HOME/.cache/nanochat/" ;;
      *) echo "curl: (6) Could not resolve host" >&2; exit 6 ;;
    esac
    """
# a virtual environment whose python must see the tests' packages: a plain link would look for its own
PYTHON = """\
    #!/bin/bash
    exec {python} "$@"
    """
ACTIVATE = """\
    VIRTUAL_ENV=@VENV@; export VIRTUAL_ENV
    PATH="$VIRTUAL_ENV/bin:$PATH"; export PATH
    hash -r 2>/dev/null
    """

_G3_TRAIN = (
    "--depth=2 --head-dim=32 --aspect-ratio=32 --max-seq-len=256 --window-pattern=L --device-batch-size=2 "
    "--total-batch-size=512 --num-iterations=20 --eval-every=10 --eval-tokens=1024 --core-metric-every=20 "
    "--core-metric-max-per-task=4 --sample-every=20"
)
_G3 = {
    "tok_train": "--vocab-size=1024 --max-chars=1500000",
    "base_train": _G3_TRAIN,
    "base_eval": "--device-batch-size=2 --split-tokens=1024 --max-per-task=4",
    "chat_sft": "--device-batch-size=2 --num-iterations=10 --eval-every=5 --eval-tokens=1024 --chatcore-every=10 "
    "--chatcore-max-cat=4 --chatcore-max-sample=1 --mmlu-epochs=1 --gsm8k-epochs=1",
    "chat_eval": "-x 4 -m 16",
}
PHASE_ARGS = {
    "G1": {
        "tok_train": "--vocab_size=1024 --max_chars=1500000",
        "base_train": "--depth=2 --max_seq_len=256 --device_batch_size=2 --total_batch_size=512 --num_iterations=20 "
        "--eval_every=10 --eval_tokens=1024 --core_metric_every=20 --core_metric_max_per_task=4 --sample_every=20",
        "base_loss": "--device_batch_size=2 --split_tokens=1024",
        "base_eval": "--max-per-task=4",
        "mid_train": "--max_seq_len=256 --device_batch_size=2 --total_batch_size=512 --num_iterations=10 "
        "--eval_every=5 --eval_tokens=1024",
        "chat_sft": "--device_batch_size=2 --target_examples_per_step=2 --num_iterations=8 --eval_every=4 "
        "--eval_steps=2 --eval_metrics_every=7 --eval_metrics_max_problems=4",
        "chat_eval": "-x 4 -m 16",
    },
    "G2": _G3,
    "G3": _G3,
}


def build_kit(folder: Path) -> Path:
    """The kit in `folder` (made once; a finished one is taken as it is)."""
    if (folder / "done").exists():
        return folder
    _scripts(folder)
    rng = random.Random(7)
    base = folder / "base"
    _shards(base, rng)
    _core(base / "eval_bundle", rng)
    (base / "words_alpha.txt").write_text("\n".join(sorted({_word(rng) for _ in range(5000)})) + "\n")
    with open(base / "identity_conversations.jsonl", "w") as file:
        for number in range(50):
            talk = [
                {"role": "user", "content": f"who are you? ({number})"},
                {"role": "assistant", "content": "a small model"},
            ]
            file.write(json.dumps(talk) + "\n")
    for name, config, splits in _datasets(rng):
        _task_data(base / "task_data", name, config, splits)
        _hub(folder / "hub" / name, config, splits)
    (folder / "done").touch()
    return folder


def environment(kit: Path, hub: str = "") -> dict[str, str]:
    """What HOMERUN and upstream need to find the kit; nothing reaches for the network. hub: the URL of a Hub that
    serves the kit's `hub`, which generations before the third want."""
    return {
        "HOMERUN_SCRIPT_PATH": str(kit / "bin"),
        "TORCHDYNAMO_DISABLE": "1",
        **({"HF_ENDPOINT": hub, "HF_HUB_DISABLE_XET": "1"} if hub else {"HF_HUB_OFFLINE": "1"}),
        "NPROC_PER_NODE": "0",
        "HOMERUN_SKIP_CHECKS": "dataset",  # its shards come from the kit, not from the network
    }


def _scripts(folder: Path) -> None:
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    for path, text in {
        "bin/uv": UV.format(python=folder / "python"),
        "bin/curl": CURL,
        "bin/files-to-prompt": "#!/bin/bash\necho files\n",
        "python": PYTHON.format(python=sys.executable),
        "activate": ACTIVATE,
    }.items():
        (folder / path).write_text(textwrap.dedent(text))
        (folder / path).chmod(0o755)


def _word(rng: random.Random) -> str:
    return "".join(rng.choice("bcdfglmnprst") + rng.choice("aeiou") for _ in range(rng.randint(1, 4)))


def _text(rng: random.Random, words: int) -> str:
    return " ".join(_word(rng) for _ in range(words)).capitalize() + "."


def _shards(base: Path, rng: random.Random) -> None:
    base.mkdir(parents=True)
    originals = []
    for number in range(3):
        texts = [_text(rng, 120) for _ in range(600)]
        path = base / f"original_{number}.parquet"
        pq.write_table(pa.table({"text": texts}), path, row_group_size=100)
        originals.append(path)
    for data, numbers in SHARDS.items():
        (base / data).mkdir()
        for number in numbers:
            os.link(originals[number % 3], base / data / f"shard_{number:05d}.parquet")
    for path in originals:
        path.unlink()


def _core(bundle: Path, rng: random.Random) -> None:
    """Three tiny CORE tasks, one of each type; JSON is YAML too."""
    (bundle / "eval_data").mkdir(parents=True)
    rows = {
        "multiple_choice": lambda: {
            "query": _text(rng, 5),
            "choices": [_word(rng), _word(rng)],
            "gold": rng.randint(0, 1),
        },
        "schema": lambda: {
            "context_options": [_text(rng, 3), _text(rng, 3)],
            "continuation": _word(rng),
            "gold": rng.randint(0, 1),
        },
        "language_modeling": lambda: {"context": _text(rng, 5), "continuation": _word(rng)},
    }
    tasks = []
    with open(bundle / "eval_meta_data.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Eval Task", "Random baseline"])
        for kind, row in rows.items():
            label, data = f"toy_{kind}", f"{kind}.jsonl"
            (bundle / "eval_data" / data).write_text("".join(json.dumps(row()) + "\n" for _ in range(12)))
            writer.writerow([label, 0 if kind == "language_modeling" else 50])
            tasks.append({"label": label, "icl_task_type": kind, "dataset_uri": data, "num_fewshot": [0]})
    (bundle / "core.yaml").write_text(json.dumps({"icl_tasks": tasks}))


def _datasets(rng: random.Random) -> list[tuple[str, str, dict[str, list[dict]]]]:
    """(name on the hub, configuration, split → rows), as long as upstream's slices want them."""

    def mmlu() -> dict:
        return {"question": _text(rng, 6), "subject": "anatomy", "choices": [_word(rng) for _ in range(4)], "answer": 1}

    def arc() -> dict:
        choices = {"text": [_word(rng) for _ in range(4)], "label": ["A", "B", "C", "D"]}
        return {"id": "x", "question": _text(rng, 6), "choices": choices, "answerKey": rng.choice("ABCD")}

    def gsm() -> dict:
        a, b = rng.randint(1, 9), rng.randint(1, 9)
        return {"question": f"What is {a} and {b}?", "answer": f"It is <<{a}+{b}={a + b}>>{a + b}.\n#### {a + b}"}

    def talk() -> dict:
        words = [("user", _text(rng, 5)), ("assistant", _text(rng, 5))]
        return {"messages": [{"role": role, "content": content} for role, content in words]}

    program = {"task_id": "x", "prompt": "def one():\n", "canonical_solution": "    return 1\n", "entry_point": "one"}
    program["test"] = "def check(candidate):\n    assert candidate() == 1\n"
    auxiliary = [mmlu() for _ in range(300)]
    arc_splits = ("train", "validation", "test")
    return [
        *(
            ("allenai/ai2_arc", config, {split: [arc() for _ in range(40)] for split in arc_splits})
            for config in ("ARC-Easy", "ARC-Challenge")
        ),
        ("cais/mmlu", "all", {"auxiliary_train": auxiliary, "test": [mmlu() for _ in range(5300)]}),
        ("cais/mmlu", "auxiliary_train", {"train": [{"train": row} for row in auxiliary]}),
        ("openai/gsm8k", "main", {"train": [gsm() for _ in range(300)], "test": [gsm() for _ in range(450)]}),
        ("openai/openai_humaneval", "openai_humaneval", {"test": [program for _ in range(20)]}),
        (
            "HuggingFaceTB/smol-smoltalk",
            "default",
            {"train": [talk() for _ in range(10500)], "test": [talk() for _ in range(200)]},
        ),
    ]


def _task_data(folder: Path, name: str, config: str, splits: dict[str, list[dict]]) -> None:
    """G3's own cache of the hub: task_data/<org>--<name>/<config>/<split>/."""
    for split, rows in splits.items():
        place = folder / name.replace("/", "--") / config / split
        place.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), place / "00000.parquet")
        (place / "manifest.json").write_text('["00000.parquet"]')


def _hub(folder: Path, config: str, splits: dict[str, list[dict]]) -> None:
    """A repository of the hub as a folder; its README tells `datasets.load_dataset` where the splits are."""
    readme = folder / "README.md"
    configs = json.loads(readme.read_text().split("---")[1].split("configs: ")[1]) if readme.exists() else []
    files = []
    for split, rows in splits.items():
        path = folder / config / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
        files.append({"split": split, "path": f"{config}/{split}.parquet"})
    configs.append({"config_name": config, "data_files": files} | ({"default": True} if not configs else {}))
    readme.write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
