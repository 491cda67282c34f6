"""A fresh worktree for a run: upstream at a commit, a folder as it is, or a recipe. Whatever is given is only read.

The commit's files come byte for byte (no line-end conversion, no hooks), with a git folder of their own beside them:
upstream asks git for its report.
"""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from homerun.errors import RequestError

DIRTY = "-dirty"  # ends the commit of a folder whose files are not what it has committed
SCRIPT_FOLDERS = (".", "runs", "dev")  # where upstream has had its scripts
_NEVER_COPIED = {".git", ".venv", "__pycache__"}


@dataclass(frozen=True)
class Source:
    """What a run runs. url: as given; None for a recipe. commit: 40 digits, `-dirty` behind them where files differ;
    None without git. script: relative to root. sha256: the script's.
    """

    url: str | None
    ref: str | None
    commit: str | None
    root: Path
    script: str
    sha256: str


def checkout(upstream: str, ref: str | None, dest: Path, script: str | None = None) -> Source:
    """Put `upstream` (git URL, bare clone or folder) at `ref` into `dest`, and find the script in it.

    dest: absent or empty; or what an earlier checkout of the same left, whose tracked files are then made good, and
    whose others (a .venv) stay. script: a name (`runcpu`) or path; None is the speedrun. Raises RequestError.
    """
    if shutil.which("git") is None:
        raise RequestError("git is not installed", "Install git")
    folder = Path(upstream).expanduser()
    ref = ref or None
    if folder.is_dir():
        commit = _take_folder(folder.resolve(), ref, dest)
    elif "://" in upstream or re.match(r"[\w.-]+@[\w.-]+:", upstream):
        commit = _take_url(upstream, ref, dest)
    else:
        raise RequestError(f"there is no folder {upstream}, and it is no git URL", "Check --upstream")
    found = find_script(dest, script)
    if commit and not commit.endswith(DIRTY):
        committed = _git(dest, "cat-file", "blob", f"{commit}:{found}").stdout
        if committed != (dest / found).read_bytes():
            raise RequestError(f"{dest / found} is not what {commit[:10]} holds", f"Remove {dest} and start again")
    return Source(upstream, ref, commit, dest, found, _sha256(dest / found))


def recipe(script: Path, dest: Path) -> Source:
    """A recipe: `dest` gets a copy of it. Raises RequestError where `dest` has another one of that name."""
    try:
        content = script.read_bytes()
    except OSError as error:
        raise RequestError(f"the script {script} cannot be read ({error.strerror})", "Check --script") from None
    copy = dest / script.name
    if copy.exists() and copy.read_bytes() != content:
        raise RequestError(f"{script} is not the script that this run began with", "Start a new run with it")
    dest.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(content)
    return Source(None, None, None, dest, script.name, hashlib.sha256(content).hexdigest())


def script_sha256(source: Source) -> str:
    """The script's sha256 as it is now: after a run it must still be `source.sha256`."""
    return _sha256(source.root / source.script)


def find_script(root: Path, name: str | None = None) -> str:
    """The path, relative to root, of the speedrun or of another script by name. Raises RequestError that lists them."""
    there = {
        path.relative_to(root).as_posix(): path
        for folder in SCRIPT_FOLDERS
        for path in sorted((root / folder).glob("*.sh"))
        if path.is_file()
    }
    wanted = name or "speedrun"
    matching = [path for path in there if wanted in (path, Path(path).name, Path(path).stem)]
    if matching:
        return matching[0]
    if name and (root / name).is_file() and (root / name).resolve().is_relative_to(root.resolve()):
        return Path(name).as_posix()
    raise RequestError(
        f"there is no script {wanted} at this commit",
        f"There is {', '.join(there) or 'none'}; choose one with --script",
    )


def _take_folder(folder: Path, ref: str | None, dest: Path) -> str | None:
    """Copy from a folder: the commit, where one is asked for or nothing was changed; else the files as they are."""
    repository = _repository(folder)
    if repository is None:
        if ref:
            raise RequestError(
                f"{folder} is no git repository: it has no {ref}", "Leave out --ref, or check --upstream"
            )
        if _ready(dest, str(folder), None):
            _copy(folder, dest, _plain_files(folder, dest))
            _done(dest, "none")
        return None
    bare = _git(folder, "rev-parse", "--is-bare-repository").stdout.strip() == b"true"
    commit = _resolve(folder, (ref or "HEAD").removesuffix(DIRTY), given=ref)
    status = b"" if bare else _git(folder, "status", "--porcelain").stdout
    dirty = bool(status) if ref is None else ref.endswith(DIRTY)
    if not dirty:
        if _ready(dest, str(folder), commit):
            _borrow(repository, dest)
            _set_files(dest, commit)
        return commit
    if not _ready(dest, str(folder), commit + DIRTY):
        return commit + DIRTY
    if commit != _resolve(folder, "HEAD", given=None):
        raise RequestError(
            f"{folder} is no longer at {commit[:10]}, and its changes were never committed", "Start a new run"
        )
    listed = _git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout.split(b"\0")
    _borrow(repository, dest)
    _copy(folder, dest, dict.fromkeys(os.fsdecode(name) for name in listed if name))
    _git(dest, "update-ref", "--no-deref", "HEAD", commit)
    _git(dest, "reset", "--quiet")  # the index, so that git's own status shows what differs
    return _done(dest, commit + DIRTY)


def _take_url(url: str, ref: str | None, dest: Path) -> str:
    exact = ref if ref and re.fullmatch(r"[0-9a-f]{40}", ref) else None
    if not _ready(dest, url, exact) and exact:
        return exact  # a restart needs no network
    fetched = _git(dest, "fetch", "--quiet", "--depth=1", url, ref or "HEAD", check=False)
    wanted = "FETCH_HEAD"
    if fetched.returncode and ref and re.fullmatch(r"[0-9a-f]{4,40}", ref):
        # Servers name no commit by its first digits, and some give none that is not a branch's end: take all of it.
        fetched = _git(dest, "fetch", "--quiet", "--tags", url, "+refs/heads/*:refs/remotes/origin/*", check=False)
        wanted = ref
    if fetched.returncode:
        said = fetched.stderr.decode(errors="replace").strip().rpartition("\n")[2].removeprefix("fatal: ")
        if "find remote ref" in said or "not our ref" in said:
            raise RequestError(f"{url} has no {ref}", "Check --ref: a branch, a tag or a commit")
        raise RequestError(f"{url} cannot be fetched: {said}", "Check the network, or give a folder with --upstream")
    commit = _resolve(dest, wanted, given=ref)
    _ready(dest, url, commit)
    _set_files(dest, commit)
    return commit


def _ready(dest: Path, url: str, commit: str | None) -> bool:
    """Make `dest` a git folder for `url`; whether it still needs its files. Raises RequestError if it holds another's.

    An earlier checkout of the same commit is made good: tracked files as committed, others (.venv, logs) stay.
    """
    if not dest.is_dir() or not any(dest.iterdir()):
        dest.mkdir(parents=True, exist_ok=True)
        _git(dest, "init", "--quiet", "--template=", "--initial-branch=master")
        _git(dest, "config", "homerun.source", url)
        return True
    of = _git(dest, "config", "--local", "homerun.source", check=False).stdout.decode().strip()
    had = _git(dest, "config", "--local", "homerun.commit", check=False).stdout.decode().strip()
    if of != url or (had and commit and had != commit):
        holds = f"{of} {had[:10]}" if of else "something else"
        raise RequestError(f"{dest} is not empty: it holds {holds}", f"Remove it, or start a new run (wanted: {url})")
    if re.fullmatch(r"[0-9a-f]{40}", had):
        _git(dest, "reset", "--quiet", "--hard", had)
    return not had


def _done(dest: Path, commit: str) -> str:
    """Note that the files of `commit` are all there: what is not noted was cut off, and is done again."""
    _git(dest, "config", "homerun.commit", commit)
    return commit


def _borrow(repository: Path, dest: Path) -> None:
    """Let `dest` read the objects of a repository, which stays as it is."""
    objects = dest / ".git" / "objects" / "info" / "alternates"
    objects.parent.mkdir(parents=True, exist_ok=True)
    objects.write_text(f"{repository / 'objects'}\n")
    if (repository / "shallow").is_file():
        shutil.copyfile(repository / "shallow", dest / ".git" / "shallow")


def _set_files(dest: Path, commit: str) -> None:
    _git(dest, "checkout", "--quiet", "--force", "--detach", commit)
    _done(dest, commit)


def _repository(folder: Path) -> Path | None:
    """The git folder of which `folder` is the top (a worktree's own, too), or None."""
    found = _git(folder, "rev-parse", "--path-format=absolute", "--git-common-dir", "--show-prefix", check=False)
    lines = os.fsdecode(found.stdout).split("\n")
    if found.returncode or lines[1] or _git(folder, "rev-parse", "--verify", "HEAD", check=False).returncode:
        return None
    return Path(lines[0])


def _resolve(repository: Path, ref: str, given: str | None) -> str:
    for name in (ref, f"origin/{ref}"):
        found = _git(
            repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}", check=False
        )
        if not found.returncode:
            return found.stdout.decode().strip().rpartition("\n")[2]
    raise RequestError(f"{repository} has no {given or ref}", "Check --ref: a branch, a tag or a commit")


def _plain_files(folder: Path, dest: Path) -> list[str]:
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _NEVER_COPIED and Path(parent, name) != dest.absolute()]
        links = [name for name in folders if Path(parent, name).is_symlink()]
        found += [str(Path(parent, name).relative_to(folder)) for name in files + links]
    return found


def _copy(folder: Path, dest: Path, names: Iterable[str]) -> None:
    for name in names:
        source, copy = folder / name, dest / name
        if source.is_symlink() or source.is_file():  # a submodule is a folder, a deleted file nothing
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.unlink(missing_ok=True)  # of a copy that was cut off
            shutil.copy2(source, copy, follow_symlinks=False)


def _git(folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    # Byte for byte whatever the user's own configuration says, never a question on the terminal, no write to a folder
    # that is only looked at (`status` would refresh its index); a folder of another owner (a mount) may be read.
    options = ("core.autocrlf=false", "core.eol=lf", "core.hooksPath=/dev/null", "core.fsmonitor=false", "gc.auto=0")
    command = [
        "git",
        "--no-optional-locks",
        *(x for o in (*options, "safe.directory=*") for x in ("-c", o)),
        *arguments,
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C", "GIT_SSH_COMMAND": "ssh -oBatchMode=yes"}
    environment["GIT_CEILING_DIRECTORIES"] = str(folder.resolve().parent)  # never a repository further up
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, stdin=subprocess.DEVNULL)
    if check and done.returncode:
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2].removeprefix("fatal: ")
        raise RequestError(f"git {arguments[0]} failed in {folder}: {said}", "Check --upstream and the disk")
    return done


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
