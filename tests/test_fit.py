"""How a model fits on GPUs: the rule itself, what it does to a phase's arguments, and a run that is adapted by it."""

import itertools
import json

import pytest
from fake_upstream import homerun, make

from homerun.job.fitting import check_fit
from homerun.journal import replay
from homerun.upstream.adapt import Wishes, adapt
from homerun.upstream.fit import USABLE, Asked, fit, needed, read_asked
from homerun.upstream.flags import Flags
from homerun.upstream.plan import read_plan
from tests.fakes.nvml import on_path

H100 = {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 85_520_809_984, "capability": (9, 0)}
A100 = {"name": "NVIDIA A100-SXM4-40GB", "memory_bytes": 40 << 30, "capability": (8, 0)}
DASHES = Flags(
    frozenset({"--depth", "--device-batch-size", "--max-seq-len", "--fp8"}),
    {"--depth": 20, "--device-batch-size": 32, "--max-seq-len": 2048, "--fp8": False},
    "argparse",
)
UNDERSCORES = Flags(
    frozenset({"--depth", "--device_batch_size"}), {"--depth": 20, "--device_batch_size": 32}, "configurator"
)


@pytest.mark.parametrize(
    ("count", "gb", "depth"), list(itertools.product([1, 2, 3, 4, 8], [24, 40, 80, 141], [4, 12, 20, 24, 26, 32]))
)
def test_a_fit_divides_the_batch_and_stays_inside_the_memory(count, gb, depth):
    found = fit([{"name": "x", "memory_bytes": gb * 1e9, "capability": (9, 0)}] * count, depth)
    assert found.nproc & (found.nproc - 1) == 0
    assert 524_288 % (found.nproc * 2048 * max(1, found.device_batch)) == 0
    if found.device_batch:
        assert needed(depth, found.device_batch) <= USABLE * gb * 1e9
    else:
        assert "lower --depth" in found.why


def test_a_fit_is_what_upstream_itself_chose_on_80_gb():
    assert [fit([H100] * 8, depth).device_batch for depth in (20, 24, 26)] == [32, 16, 16]
    assert not fit([A100], 20).fp8


def adapted(line: str, found, flags, **own):
    step = read_plan(line.encode()).steps[0]
    argv, changes = adapt(step, list(step.words), Wishes(fit=found, phase_args=own), flags)
    return argv[argv.index("--") + 1 :], [change for change in changes if change.what.startswith("fitted")]


def test_the_device_batch_is_only_lowered_and_fp8_follows_the_gpus():
    line = "torchrun -m scripts.base_train -- --depth=24 --device-batch-size=16 --fp8"
    assert adapted(line, fit([H100] * 8, 24), DASHES) == (["--depth=24", "--device-batch-size=16", "--fp8"], [])
    eight = line.replace("16", "8")
    assert adapted(eight, fit([H100] * 8, 24), DASHES)[0][1] == "--device-batch-size=8"
    assert len(adapted(eight, fit([H100] * 8, 24), DASHES)[0]) == 3
    argv, (change,) = adapted(line, fit([A100] * 2, 24, device_batch=16), DASHES)
    assert argv == ["--depth=24", "--device-batch-size=16", "--device-batch-size=4"]
    assert (change.added, change.removed) == (("--device-batch-size=4",), ("--fp8",))
    assert "2 of 2 GPUs; device batch 4 (about" in change.what and "FP8 is not" in change.what


def test_what_the_script_leaves_to_its_defaults_is_fitted_as_that_commit_spells_it():
    argv, _ = adapted("torchrun -m scripts.base_train -- --depth=20", fit([A100], 20), UNDERSCORES)
    assert argv == ["--depth=20", "--device_batch_size=8"]
    argv, _ = adapted("torchrun -m scripts.base_train -- --depth=20", fit([H100], 20), DASHES)
    assert argv == ["--depth=20", "--fp8"]  # its batch of 32 fits


def test_the_users_own_arguments_win_over_the_fit():
    line = "torchrun -m scripts.base_train -- --depth=24 --device-batch-size=16 --fp8"
    argv, _ = adapted(line, fit([A100], 24), DASHES, base_train="--device-batch-size=2 --fp8")
    assert argv == ["--depth=24", "--device-batch-size=16", "--fp8", "--device-batch-size=2", "--fp8"]


def test_phases_without_such_flags_and_machines_without_gpus_are_left_alone():
    none = Flags(frozenset({"-i"}), {}, "argparse")
    assert adapted("torchrun -m scripts.chat_eval -- -i sft", fit([A100], 24), none) == (["-i", "sft"], [])
    inherits = Flags(frozenset({"--device-batch-size"}), {"--device-batch-size": None}, "argparse")
    assert adapted("torchrun -m scripts.chat_sft -- --run=x", fit([A100], 24), inherits) == (["--run=x"], [])
    line = "torchrun -m scripts.base_train -- --depth=24 --fp8"
    assert adapted(line, fit([], 24), DASHES) == (["--depth=24", "--fp8"], [])


@pytest.mark.parametrize(
    ("gpus", "words", "verdict", "says"),
    [
        ([H100] * 8, "--depth=24 --device-batch-size=16 --fp8", "pass", "device batch 16"),
        ([A100] * 8, "--depth=24 --device-batch-size=16 --fp8", "fail", "asks for FP8"),
        ([A100] * 8, "--depth=24 --device-batch-size=16", "warn", "asks for device batch 16"),
        ([A100] * 8, "--depth=24 --device-batch-size 4", "pass", "device batch 4"),
        ([A100] * 8, "--depth=48", "warn", "lower --depth"),
        ([H100] * 3, "--depth=20", "pass", "2 of 3 GPUs, 1 left idle"),
    ],
)
def test_preflight_says_before_the_run_what_would_not_fit(gpus, words, verdict, says):
    wants = read_asked(words.split(), DASHES)
    found, seen, hint = check_fit(gpus, wants, auto=False)
    assert (found, says in seen) == (verdict, True)
    assert bool(hint) == (verdict != "pass")
    if wants.depth < 48:
        assert check_fit(gpus, wants, auto=True)[0] == "pass"
    assert check_fit([], wants, auto=False) is check_fit(gpus, None, auto=False) is None


def test_what_base_training_asks_for_is_read_from_its_arguments_and_defaults():
    assert read_asked(["--depth=8", "--depth", "12"], DASHES) == Asked(12, 2048, 32, False)
    assert read_asked(["--device_batch_size=4"], UNDERSCORES) == Asked(20, 2048, 4, False)
    assert read_asked(["--depth=8"], None) is None


@pytest.fixture
def box(tmp_path):
    """A fake upstream that wants 8 × FP8 and batch 32 at depth 24, and a box of two A100 with 40 GB."""
    upstream = make(tmp_path / "upstream")
    script = upstream / "runs" / "speedrun.sh"
    script.write_text(script.read_text().replace("--depth=4", "--depth=24 --device-batch-size=32 --fp8"))
    train = upstream / "scripts" / "base_train.py"
    flags = ('"--device-batch-size", type=int, default=32', '"--fp8", action="store_true"')
    added = "".join(f"parser.add_argument({flag})\n" for flag in flags)
    train.write_text(train.read_text().replace("args = parser", added + "args = parser", 1))
    env = {"HOMERUN_DIR": str(tmp_path / "dir"), "HOMERUN_RUN_ID": "run", "HOMERUN_SYNC_SECONDS": "0.1"}
    env["HOMERUN_SKIP_CHECKS"] = "disk"
    return str(upstream), env | on_path(tmp_path / "box", 2, 40)


def test_the_plan_shows_the_fit_with_its_line_of_explanation(box):
    upstream, env = box
    done = homerun("plan", "--upstream", upstream, "--fit", "auto", "--json", **env)
    assert done.returncode == 0, done.stderr
    (train,) = [phase for phase in json.loads(done.stdout)["phases"] if phase["name"] == "base_train"]
    assert train["argv"][-1] == "--device-batch-size=4" and "--fp8" not in train["argv"]
    assert "--nproc_per_node=2" in train["argv"]
    assert "2 of 2 GPUs; device batch 4" in " ".join(change["why"] for change in train["adapted"])
    shown = homerun("plan", "--upstream", upstream, "--fit", "auto", **env).stdout
    assert "-[--fp8] +[--device-batch-size=4]" in shown
    plain = homerun("plan", "--upstream", upstream, "--json", **env).stdout
    assert "device batch" not in plain


@pytest.mark.slow
def test_a_run_that_is_told_auto_is_fitted_and_its_journal_says_why(box, tmp_path):
    upstream, env = box
    arguments = ("train", "--upstream", upstream, "--skip", "chat_eval")
    refused = homerun(*arguments, **env)
    assert refused.returncode == 3, refused.stdout
    assert "fit" in refused.stdout and "--fit auto" in refused.stdout
    done = homerun(*arguments, "--fit", "auto", **{**env, "HOMERUN_RUN_ID": "fitted"})
    assert done.returncode == 0, done.stdout + done.stderr
    events = list(replay(tmp_path / "dir" / "runs" / "fitted" / "journal.jsonl"))
    (begin,) = [event for event in events if event["type"] == "phase.begin" and event["phase"] == "base_train"]
    assert "--device-batch-size=4" in begin["argv"] and "--fp8" not in begin["argv"]
    assert "--fp8" in begin["original"]
    (plan,) = [event for event in events if event["type"] == "plan"]
    lines = [change["what"] for change in plan["adapted"] if change["phase"] == "base_train"]
    assert any(line.startswith("fitted: 2 of 2 GPUs; device batch 4") for line in lines), lines
    (check,) = [event for event in events if event["type"] == "check" and event["name"] == "fit"]
    assert check["verdict"] == "pass" and check["seen"].endswith("applied")


def test_fit_takes_auto_and_nothing_else(tmp_path):
    done = homerun("train", "--fit", "always", HOMERUN_DIR=str(tmp_path))
    assert done.returncode == 2
    assert "HOMERUN_FIT" in done.stderr and "auto" in done.stderr and "Traceback" not in done.stderr
