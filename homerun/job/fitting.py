"""How the script's base training fits this machine's GPUs: shown by preflight, applied where the user says auto."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from homerun.machine import Gpus, read_gpus
from homerun.settings import Settings
from homerun.upstream.adapt import spelled
from homerun.upstream.fit import Asked, Fit, fit, read_asked
from homerun.upstream.flags import module_flags
from homerun.upstream.plan import Plan
from homerun.upstream.worktree import Source

AUTO = "--fit auto (HOMERUN_FIT=auto)"


def gpu_rows(found: Gpus) -> list[dict[str, Any]]:
    """[{name, memory_bytes, capability}], as `fit`, table and prices want them."""
    return [{"name": gpu.name, "memory_bytes": gpu.memory_bytes, "capability": gpu.capability} for gpu in found.gpus]


def asked(source: Source, plan: Plan, phase_args: Mapping[str, str]) -> Asked | None:
    """What the script's deepest base training asks of a GPU, the user's own arguments last; None where it has none."""
    found = []
    for step in plan.steps:
        if step.module and step.module.rpartition(".")[2] == "base_train":
            flags = module_flags(source.root, step.module)
            own = f"{phase_args.get('base_train', '')} {phase_args.get(step.name, '')}"
            found.append(read_asked([*step.words, *spelled(shlex.split(own), flags)], flags))
    return max((one for one in found if one), key=lambda one: one.depth, default=None)


def wanted_fit(
    settings: Settings, source: Source, plan: Plan, nproc: int | None, phase_args: Mapping[str, str]
) -> Fit | None:
    """The fit that the run shall be adapted to; None where the user did not ask for it, or nothing can be told."""
    if settings.homerun_fit != "auto":
        return None
    gpus, wants = gpu_rows(read_gpus()), asked(source, plan, phase_args)
    return fit(gpus[:nproc], wants.depth, wants.sequence, wants.device_batch) if gpus and wants else None


def check_fit(gpus: Sequence[dict[str, Any]], wants: Asked | None, auto: bool) -> tuple[str, str, str] | None:
    """gpus: those that the run will use. auto: whether the fit is applied."""
    if not gpus or wants is None:
        return None
    found = fit(gpus, wants.depth, wants.sequence, wants.device_batch)
    if not found.device_batch:
        return "warn", found.why, "--phase-args base_train='--depth=…'"
    if auto:
        return "pass", f"{found.why}: applied", ""
    if wants.fp8 and not found.fp8:
        return "fail", f"the script asks for FP8: {found.why}", f"{AUTO} leaves it out"
    if wants.device_batch and wants.device_batch > found.device_batch:
        return "warn", f"the script asks for device batch {wants.device_batch}: {found.why}", AUTO
    return "pass", found.why, ""
