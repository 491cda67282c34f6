"""Checkouts: the commit byte for byte, the given folder never written to, a restart that goes on where it was."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from homerun.errors import RequestError
from homerun.upstream.worktree import checkout, recipe, script_sha256

SCRIPT = b"#!/bin/bash\npython -m scripts.base_train\n"


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "core.autocrlf=false")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture
def repository(tmp_path) -> Path:
    """Two commits: the script at the top (tag `old`), then under runs/."""
    folder = tmp_path / "upstream"
    (folder / "scripts").mkdir(parents=True)
    (folder / "speedrun.sh").write_bytes(SCRIPT)
    (folder / "scripts" / "base_train.py").write_text("depth = 2\n")
    (folder / "crlf.txt").write_bytes(b"kept\r\nas is\n")
    (folder / ".python-version").write_text("3.10\n")
    (folder / ".gitignore").write_text(".venv/\n*.log\n")
    (folder / "link").symlink_to("speedrun.sh")
    git(folder, "init", "-q", "-b", "master")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "old")
    git(folder, "tag", "old")
    (folder / "runs").mkdir()
    git(folder, "mv", "speedrun.sh", "runs/speedrun.sh")
    (folder / "runs" / "runcpu.sh").write_bytes(b"true\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "new")
    return folder


@pytest.mark.parametrize("kind", ["folder", "bare", "url"])
def test_a_checkout_is_the_commit_with_its_sha_and_script(repository, tmp_path, kind):
    upstream = str(repository)
    if kind == "bare":
        git(tmp_path, "clone", "-q", "--bare", upstream, "bare.git")
        upstream = str(tmp_path / "bare.git")
    if kind == "url":
        upstream = f"file://{repository}"
    before = snapshot(repository)
    new, old = checkout(upstream, None, tmp_path / "new"), checkout(upstream, "old", tmp_path / "old")
    assert (new.script, old.script) == ("runs/speedrun.sh", "speedrun.sh")
    assert (new.commit, old.commit) == (git(repository, "rev-parse", "HEAD"), git(repository, "rev-parse", "old"))
    assert new.sha256 == script_sha256(new) == hashlib.sha256(SCRIPT).hexdigest()
    assert git(new.root, "rev-parse", "HEAD") == new.commit and git(new.root, "status", "--porcelain") == ""
    for name in (".python-version", "crlf.txt", "scripts/base_train.py"):
        assert (new.root / name).read_bytes() == (repository / name).read_bytes()
    assert (new.root / "link").is_symlink()
    for ref in (old.commit, old.commit[:8], "master"):
        assert checkout(upstream, ref, tmp_path / ref).commit.startswith(ref if ref != "master" else new.commit)
    assert snapshot(repository) == before


def test_line_ends_stay_as_committed_whatever_the_users_git_says(repository, tmp_path, monkeypatch):
    config = tmp_path / "gitconfig"
    config.write_text("[core]\n\tautocrlf = true\n\teol = crlf\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".gitconfig").write_text(config.read_text())
    source = checkout(str(repository), None, tmp_path / "src")
    assert (source.root / source.script).read_bytes() == SCRIPT


def test_a_changed_folder_is_copied_as_it_is_and_says_so(repository, tmp_path):
    (repository / "scripts" / "base_train.py").write_text("depth = 3\n")
    (repository / "fresh.py").write_text("x\n")
    (repository / "crlf.txt").unlink()
    (repository / ".venv").mkdir()
    (repository / ".venv" / "big").write_text("x")
    before = snapshot(repository)
    source = checkout(str(repository), None, tmp_path / "src")
    head = git(repository, "rev-parse", "HEAD")
    assert source.commit == f"{head}-dirty"
    assert (source.root / "scripts" / "base_train.py").read_text() == "depth = 3\n"
    assert (source.root / "fresh.py").exists() and not (source.root / "crlf.txt").exists()
    assert not (source.root / ".venv").exists()
    assert git(source.root, "rev-parse", "HEAD") == head
    assert snapshot(repository) == before
    # a commit asked for is that commit, changes or not
    assert (checkout(str(repository), head, tmp_path / "clean").root / "crlf.txt").exists()
    # a restart that names it gets the same files again, here and on an emptied disk, until the folder moves on
    assert checkout(str(repository), source.commit, tmp_path / "src") == source.__class__(
        source.url, source.commit, source.commit, source.root, source.script, source.sha256
    )
    assert checkout(str(repository), source.commit, tmp_path / "again").commit == source.commit
    git(repository, "commit", "-qam", "more")
    with pytest.raises(RequestError, match="never committed"):
        checkout(str(repository), source.commit, tmp_path / "late")


def test_a_plain_folder_is_copied_without_a_commit(repository, tmp_path):
    (repository / ".git").rename(tmp_path / "gone")
    source = checkout(str(repository), None, repository / "inside" / "src")  # not into itself
    assert source.commit is None and source.sha256 == hashlib.sha256(SCRIPT).hexdigest()
    git(source.root, "config", "--unset", "homerun.commit")  # cut off, and done again
    assert checkout(str(repository), None, source.root) == source
    assert not (source.root / "inside").exists()
    with pytest.raises(RequestError, match="no git repository"):
        checkout(str(repository), "old", tmp_path / "y")


@pytest.mark.parametrize("kind", ["folder", "url"])
def test_a_restart_keeps_what_the_run_made_and_mends_what_it_changed(repository, tmp_path, kind):
    upstream = str(repository) if kind == "folder" else f"file://{repository}"
    first = checkout(upstream, None, tmp_path / "src")
    (first.root / ".venv").mkdir()
    (first.root / ".venv" / "python").write_text("x")
    (first.root / first.script).write_text("changed\n")
    assert script_sha256(first) != first.sha256
    if kind == "url":
        repository.rename(tmp_path / "unreachable")
    again = checkout(upstream, first.commit, tmp_path / "src")
    assert again.sha256 == first.sha256 == script_sha256(again)
    assert (first.root / ".venv" / "python").exists()


def test_a_checkout_that_was_cut_off_is_done_again(repository, tmp_path):
    source = checkout(str(repository), "old", tmp_path / "src")
    git(source.root, "config", "--unset", "homerun.commit")
    (source.root / "speedrun.sh").unlink()
    assert checkout(str(repository), "old", tmp_path / "src").sha256 == source.sha256


def test_another_commit_or_anything_else_in_dest_is_an_error_and_stays(repository, tmp_path):
    checkout(str(repository), "old", tmp_path / "src")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("x")
    for dest in ("src", "mine"):
        with pytest.raises(RequestError, match="is not empty"):
            checkout(str(repository), None, tmp_path / dest)
    assert (tmp_path / "mine" / "precious").read_text() == "x"
    assert (tmp_path / "src" / "speedrun.sh").exists()


def test_scripts_are_found_by_name_and_a_missing_one_lists_those_there_are(repository, tmp_path):
    assert checkout(str(repository), None, tmp_path / "a", "runcpu").script == "runs/runcpu.sh"
    assert checkout(str(repository), None, tmp_path / "b", "runs/runcpu.sh").script == "runs/runcpu.sh"
    with pytest.raises(RequestError, match=r"no script run1000 .*runs/runcpu\.sh, runs/speedrun\.sh"):
        checkout(str(repository), None, tmp_path / "c", "run1000")
    with pytest.raises(RequestError):
        checkout(str(repository), None, tmp_path / "d", "../upstream/runs/runcpu.sh")


@pytest.mark.parametrize(
    ("upstream", "ref", "says"),
    [
        ("{repo}", "no-such-ref", "no-such-ref"),
        ("file://{repo}", "no-such-ref", "no-such-ref"),
        ("file://{repo}", "deadbeef", "deadbeef"),
        ("{repo}", "--all", "--all"),
        ("file://{repo}/nowhere", None, "cannot be fetched"),
        ("/nowhere/at/all", None, "no folder"),
    ],
)
def test_what_cannot_be_had_is_one_clear_line(repository, tmp_path, upstream, ref, says):
    with pytest.raises(RequestError, match=says) as caught:
        checkout(upstream.format(repo=repository), ref, tmp_path / "src")
    assert "\n" not in str(caught.value) and "Check" in str(caught.value)


def test_a_folder_that_cannot_be_written_is_enough(repository, tmp_path):
    """Also without our privileges: nothing in it is opened for writing."""
    for path in [repository, *repository.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert checkout(str(repository), None, tmp_path / "src").commit
    finally:
        for path in [repository, *repository.rglob("*")]:
            if path.is_dir():
                path.chmod(0o755)


def test_a_recipe_is_a_byte_copy_that_a_restart_finds_again(tmp_path):
    script = tmp_path / "toy.sh"
    script.write_bytes(SCRIPT)
    source = recipe(script, tmp_path / "src")
    assert (source.url, source.commit, source.script) == (None, None, "toy.sh")
    assert (source.root / "toy.sh").read_bytes() == SCRIPT
    assert recipe(script, tmp_path / "src") == source
    script.write_bytes(SCRIPT + b"# changed\n")
    with pytest.raises(RequestError, match="not the script"):
        recipe(script, tmp_path / "src")
    with pytest.raises(RequestError, match="cannot be read"):
        recipe(tmp_path / "none.sh", tmp_path / "other")


def test_the_callers_git_environment_does_not_leak_in(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", os.fspath(tmp_path / "elsewhere"))
    assert checkout(str(repository), None, tmp_path / "src").commit
