"""What a person asked for, checked before anything starts."""

import json
import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from homerun.errors import RequestError
from homerun.journal import Event
from homerun.settings import UPSTREAM_URL, Settings
from homerun.upstream.worktree import SCRIPT_FOLDERS


@dataclass(frozen=True)
class Request:
    """One `homerun train`. Unset parts fall back to the environment's settings (see `from_arguments`)."""

    settings: Settings
    recipe: Path | None = None  # a script that is none of upstream's
    script: str | None = None  # name or path of one of upstream's scripts; None: its speedrun
    upstream: str = ""
    ref: str | None = None
    nproc: int | None = None  # GPUs for torchrun; 0: plain `python -m` on the CPU; None: as the machine has them
    phase_args: Mapping[str, str] = field(default_factory=dict)
    skip: frozenset[str] = frozenset()
    resume: str | None = None  # a run's id or a beginning of it, or "latest"
    wrapper: Mapping[str, Any] | None = None  # what the entrypoint recorded of the wrapper it fetched

    @classmethod
    def from_arguments(
        cls,
        settings: Settings,
        *,
        script: str | None = None,
        upstream: str | None = None,
        ref: str | None = None,
        nproc: str | None = None,
        phase_args: Iterable[str] = (),
        skip: Iterable[str] = (),
        resume: str | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> "Request":
        """Arguments over settings. phase_args: `PHASE=ARGUMENTS` each. Raises RequestError."""
        upstream = upstream or settings.homerun_upstream
        recipe, theirs = _which_script(script or settings.homerun_script, upstream)
        return cls(
            settings=settings,
            recipe=recipe,
            script=theirs,
            upstream=upstream,
            ref=ref or settings.homerun_upstream_ref,
            nproc=_nproc(nproc or settings.nproc_per_node),
            phase_args=_settings_phase_args(settings) | parse_phase_args(phase_args),
            skip=frozenset(skip) | frozenset(settings.homerun_skip),
            resume=resume,
            wrapper=_wrapper_record(environ.get("HOMERUN_WRAPPER_RECORD")),
        )

    def event(self) -> dict[str, Any]:
        """What `run.begin` keeps of it, for `remembering`."""
        return {"phase_args": dict(self.phase_args), "skip": sorted(self.skip), "nproc": self.nproc}

    def remembering(self, first: Event, src: Path) -> "Request":
        """This request, with what it leaves open as the run's `run.begin` has it: a run goes on as it began.

        first: that event. src: the run's worktree. What is asked for now, phase by phase, comes before what was.
        """
        asked, upstream, script = first["request"], first["upstream"] or {}, first["script"]["path"]
        unnamed = not (self.recipe or self.script)
        return replace(
            self,
            recipe=src / script if unnamed and not upstream else self.recipe,
            script=script if unnamed and upstream else self.script,
            upstream=upstream.get("url", UPSTREAM_URL) if self.upstream == UPSTREAM_URL else self.upstream,
            phase_args={**asked["phase_args"], **self.phase_args},
            skip=self.skip | frozenset(asked["skip"]),
            nproc=asked["nproc"] if self.nproc is None else self.nproc,
        )


def _which_script(wanted: str | None, upstream: str) -> tuple[Path | None, str | None]:
    """(a recipe's file, None), or (None, one of upstream's by name or path). Raises RequestError."""
    if not wanted:
        return None, None
    file, folder = Path(wanted), Path(upstream).expanduser().resolve()
    if file.is_file():
        inside = file.resolve().is_relative_to(folder)
        return (None, file.resolve().relative_to(folder).as_posix()) if inside else (file, None)
    named = file.parent.as_posix() in SCRIPT_FOLDERS
    if not named and not (folder / file).is_file():
        raise RequestError(f"there is no script {wanted}", "Check --script; recipes/toy.sh runs on any computer")
    return None, wanted


def parse_phase_args(pairs: Iterable[str]) -> dict[str, str]:
    """`base_train='--depth=26 …'` pairs → {phase: arguments}; the same phase twice adds up. Raises RequestError."""
    found: dict[str, str] = {}
    for pair in pairs:
        phase, equals, arguments = pair.partition("=")
        if not equals or not phase.strip() or phase.startswith("-"):
            raise RequestError(
                f"--phase-args {pair!r} is not PHASE=ARGUMENTS", "As in --phase-args base_train='--depth=26'"
            )
        try:
            shlex.split(arguments)
        except ValueError as error:
            raise RequestError(f"--phase-args {pair!r}: {error}", "Close the quotes inside it") from None
        found[phase.strip()] = f"{found[phase.strip()]} {arguments}" if phase.strip() in found else arguments
    return found


def _settings_phase_args(settings: Settings) -> dict[str, str]:
    if not settings.homerun_phase_args:
        return {}
    try:
        value = json.loads(settings.homerun_phase_args)
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            raise ValueError
    except ValueError:
        raise RequestError(
            "HOMERUN_PHASE_ARGS is not a JSON object of strings", """As in '{"base_train": "--depth=26"}'"""
        ) from None
    return parse_phase_args(f"{phase}={arguments}" for phase, arguments in value.items())


def _nproc(value: str | None) -> int | None:
    if value is None or value == "auto":
        return None
    if not value.isdigit():
        raise RequestError(f"--nproc {value!r} is not a number of GPUs", "Give 1, 2, 4, 8 …, 0 for the CPU, or auto")
    return int(value)


def _wrapper_record(path: str | None) -> dict[str, Any] | None:
    if not path:
        return None
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"HOMERUN_WRAPPER_RECORD names {path}, which cannot be read ({error})", "Unset it") from None
    return record if isinstance(record, dict) else None
