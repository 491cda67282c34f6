"""Every commit of upstream that changed the script: its plan is read without a miss, and nothing in it is unknown.

HOMERUN_UPSTREAM_SRC names a git clone of karpathy/nanochat (a bare one will do).
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

from homerun.upstream.adapt import Wishes, adapt
from homerun.upstream.flags import read_flags
from homerun.upstream.plan import Plan, read_plan
from homerun.upstream.worktree import checkout

pytestmark = [
    pytest.mark.upstream,
    pytest.mark.skipif("HOMERUN_UPSTREAM_SRC" not in os.environ, reason="HOMERUN_UPSTREAM_SRC is not set"),
]
UPSTREAM = os.environ.get("HOMERUN_UPSTREAM_SRC", "")
GENERATIONS = ("70319851fc960bc472ac7cfe9518c9478ada402e", "b4e67636adf5577a4b93254b9a7df68289948c3a",
               "92d63d4e8bb4df75c3b71618f31ddde2378b2bcd")  # fmt: skip


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", "-C", UPSTREAM, *arguments], check=True, capture_output=True).stdout


def commits() -> list[str]:
    return git("log", "--format=%H", "--", "speedrun.sh", "runs/speedrun.sh").decode().split()


def scripts(commit: str) -> list[str]:
    """Upstream's own scripts; dev/ has tools that train nothing."""
    files = git("ls-tree", "-r", "--name-only", commit).decode().split("\n")
    return [file for file in files if re.fullmatch(r"(runs/)?\w+\.sh|dev/runcpu\.sh", file)]


def read_by_eye(script: bytes) -> list[tuple[int, str]]:
    """(line, module) of each `python -m` or `torchrun … -m` line, found without any of our code."""
    found = []
    joined = re.sub(r"\\\n", lambda match: "\x00", script.decode())
    for line in re.sub(r"\n", "\n\x01", joined).split("\n"):
        text = line.strip("\x01").lstrip()
        if match := re.match(r"(?:python|torchrun)\b.*?-m (?P<module>[\w.]+)", text.replace("\x00", " ")):
            before = joined[: joined.index(text)] if joined.count(text) == 1 else None
            number = before.count("\n") + before.count("\x00") + 1 if before is not None else 0
            found.append((number, match["module"]))
    return found


def test_there_is_a_history_to_read():
    assert len(commits()) >= 30


@pytest.mark.parametrize("commit", commits() if UPSTREAM else [])
def test_every_commits_scripts_are_planned_without_a_miss(commit):
    names = scripts(commit)
    assert any(name.endswith("speedrun.sh") for name in names)
    for name in names:
        script = git("cat-file", "blob", f"{commit}:{name}")
        plan = read_plan(script)
        planned = [(step.line, step.module) for step in plan.steps if step.module]
        seen = read_by_eye(script)
        assert seen, name
        assert len(seen) == len(planned), name
        for (line, module), (planned_line, planned_module) in zip(seen, planned, strict=True):
            assert module == planned_module
            assert line in (0, planned_line), (name, module)
        drift = [line for line in plan.drift if "scaling_laws" not in name or "it activates .venv" not in line]
        assert drift == [], name  # scaling_laws.sh is meant for a folder in which another script has run
        assert all(step.section for step in plan.steps), name


@pytest.mark.parametrize("commit", GENERATIONS)
def test_a_checkout_is_the_commit_byte_for_byte(commit, tmp_path):
    source = checkout(UPSTREAM, commit, tmp_path / "src")
    assert source.commit == commit
    for name in git("ls-tree", "-r", "--name-only", commit).decode().split("\n")[:-1]:
        path = Path(tmp_path, "src", name)
        assert path.is_symlink() or path.read_bytes() == git("cat-file", "blob", f"{commit}:{name}"), name


@pytest.mark.parametrize("commit", commits() if UPSTREAM else [])
def test_flags_the_script_itself_uses_are_found_in_its_modules(commit):
    name = next(name for name in scripts(commit) if name.endswith("speedrun.sh"))
    for step in read_plan(git("cat-file", "blob", f"{commit}:{name}")).steps:
        path = (step.module or "").replace(".", "/") + ".py"
        if step.module and path in git("ls-tree", "-r", "--name-only", commit).decode().split("\n"):
            flags = read_flags(git("cat-file", "blob", f"{commit}:{path}").decode())
            after = step.words[step.words.index(step.module) + 1 :]
            used = {word.partition("=")[0] for word in after if word.startswith("--") and word != "--"}
            assert used <= flags.names, step.name


@pytest.mark.parametrize(
    ("commit", "added"),
    [(GENERATIONS[0], []), (GENERATIONS[1], ["--save-every=50"]), (GENERATIONS[2], ["--save-every=50"])],
)
def test_saving_is_asked_for_where_that_commit_can(commit, added):
    name = next(name for name in scripts(commit) if name.endswith("speedrun.sh"))
    plan: Plan = read_plan(git("cat-file", "blob", f"{commit}:{name}"))
    flags = read_flags(git("cat-file", "blob", f"{commit}:scripts/base_train.py").decode())
    step = next(step for step in plan.steps if step.name == "base_train")
    argv, changes = adapt(step, list(step.words), Wishes(save_every=50), flags)
    assert [word for change in changes for word in change.added] == added
    assert argv == [*step.words, *added]
