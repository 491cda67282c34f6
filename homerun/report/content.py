"""What a report says, as data: sections of paragraphs, tables and code, which markdown.py and html.py set.

Pure: a `RunState` in, a `Report` out. Only what is known is said; an unknown price is "?", never 0.
"""

import shlex
from typing import Any

from homerun.cost import dollars, minutes, money, phase_cost, phase_seconds, totals
from homerun.errors import Exit
from homerun.report.blocks import Bar, Block, Code, Link, Plots, Report, Section, Table
from homerun.report.evaluations import evaluations
from homerun.report.metadata import best, checkpoints, iso, model
from homerun.state import RunState

# Where upstream's own report lies, seen from ours, in the bucket and in what `homerun pull` brings.
OWN_REPORT = "../upstream_report/report.md"


def content(state: RunState, now: float | None = None, own_report: str = OWN_REPORT) -> Report:
    """now: Unix seconds, to count a live run up to. own_report: the address of upstream's own, where it wrote one."""
    now = state.updated if now is None else now
    sections = [
        _ran(state),
        _time_and_money(state, now),
        Section("Curves", [Plots("The curves are in index.html, beside this file.")] if state.curves else []),
        evaluations(state),
        _samples(state),
        _checkpoints(state),
        _remarks(state, own_report),
        _how_to(state),
    ]
    return Report(state.run, state.status, verdict(state, now), [section for section in sections if section.blocks])


# How an attempt ended that may be followed by another, by its exit code.
_ENDED: dict[int | None, str] = {
    Exit.PREFLIGHT: "Not begun",
    Exit.PHASE: "Failed",
    Exit.BUDGET: "Stopped",
    Exit.STUCK: "Stopped",
}
_ENDED |= {Exit.UNPROVEN: "Not proven"}


def verdict(state: RunState, now: float) -> str:
    """One sentence: how it ended, what came out of it, how long and for how much."""
    sums, size, figures = totals(state, now), model(state), best(state)
    words = {
        "good": "Good: everything is proven in the bucket.",
        "running": "Still running.",
        "interrupted": f"{_ENDED.get(state.code, 'Interrupted')}: {_why(state)}. It can go on.",
    }.get(state.status, f"{state.status.capitalize()}: {_why(state)}.")
    depth = f"d{size['depth']}" if "depth" in size else "The model"
    params = f" ({count(size['params'])} parameters)" if "params" in size else ""
    names = {"val_bpb": "validation bpb", "core": "CORE", "chatcore": "ChatCORE"}
    parts = [f"{label} {figures[name]:.4f}" for name, label in names.items() if name in figures]
    cost = f", {money(sums.usd)}" if sums.usd is not None else ""
    came = f": {', '.join(parts)}" if parts else ""
    return f"{words} {depth}{params}{came}; {minutes(sums.seconds)}{cost}."


def _why(state: RunState) -> str:
    failed = [phase for phase in state.phases if phase.verdict == "failed"]
    reason = (state.attempt.reason if state.attempt else None) or (state.stop or {}).get("text")
    if failed and failed[-1].reason and failed[-1].reason not in (reason or ""):
        return f"{reason or failed[-1].phase + ' failed'} ({failed[-1].reason})".rstrip(".")
    return (reason or "it ended before its end").rstrip(".")


def count(number: float) -> str:
    """`561.0M`, `1.38B`, `812k`."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.{2 if unit == 'B' else 1}f}{unit}"
    return f"{number:g}"


def _ran(state: RunState) -> Section:
    attempt, upstream = state.attempt, state.upstream or {}
    machine = attempt.machine if attempt else {}
    gpus = [str(gpu.get("name")) for gpu in machine.get("gpus") or []]
    wrapper = (attempt.wrapper if attempt else None) or {}
    rows = [
        ("Run", state.run),
        ("Began", _when(iso(state.began))),
        ("Upstream", f"{upstream.get('url')} at {upstream.get('commit')}" if upstream else None),
        ("Script", f"{state.script.get('path')}, sha256 {state.script.get('sha256')}" if state.script else None),
        ("GPUs", ", ".join(f"{gpus.count(name)} × {name}" for name in dict.fromkeys(gpus)) or "none"),
        ("Driver, CUDA", ", ".join(str(machine[key]) for key in ("driver", "cuda") if machine.get(key))),
        ("Machine", _machine(machine)),
        (
            "Price",
            f"{money(attempt.price)} an hour: {attempt.price_source}" if attempt and attempt.price_source else None,
        ),
        ("Python", ", ".join(str(machine[key]) for key in ("python", "platform") if machine.get(key))),
        ("torch", state.fact("torch_version")),
        ("Image", machine.get("image")),
        (
            "Wrapper",
            f"{wrapper.get('url')} at {wrapper.get('revision')}, sha256 {wrapper.get('sha256')}" if wrapper else None,
        ),
        ("homerun", state.version),
        ("Bucket", state.bucket),
    ]
    size = model(state)
    sizes = {"params": "parameters", "batch_tokens": "tokens a step", "model_dim": "width", "num_heads": "heads"}
    sizes |= {"vocab_size": "vocabulary", "sequence_len": "context", "peak_memory_mib": "peak memory in MiB"}
    rows.append(
        (
            "Model",
            ", ".join(f"{sizes.get(key, key)} {value:,}" for key, value in size.items() if _is_number(value) and value),
        )
    )
    blocks: list[Block] = [Table(["", ""], [[name, str(value)] for name, value in rows if value])]
    if state.adapted:
        changes = [[", ".join(phases), change] for change, phases in adapted(state).items()]
        blocks += [
            "Arguments adapted from outside; the script itself ran byte for byte:",
            Table(["phase", "change"], changes),
        ]
    return Section("What ran, and where", blocks)


def adapted(state: RunState) -> dict[str, list[str]]:
    """{change: phases} of what was run otherwise than the script has it."""
    found: dict[str, list[str]] = {}
    for one in state.adapted:
        flags = [str(word) for word in one.get("added") or []]
        words = shlex.join(flags) if flags and flags[0].startswith("-") else ""
        found.setdefault(": ".join(filter(None, [one.get("what"), words])), []).append(str(one.get("phase")))
    return found


def _when(iso_time: str | None) -> str:
    return iso_time[:19].replace("T", " ") + " UTC" if iso_time else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _machine(machine: dict[str, Any]) -> str:
    memory = f", {machine['memory_bytes'] / 1e9:,.0f} GB of memory" if machine.get("memory_bytes") else ""
    return f"{machine['host']}, {machine.get('cpus', '?')} CPUs{memory}" if machine.get("host") else ""


def _time_and_money(state: RunState, now: float) -> Section:
    sums = totals(state, now)
    several = len(state.attempts) > 1
    shown = [phase for phase in state.phases if phase.verdict != "skipped"]
    rows = []
    for phase in shown:
        cells = [
            phase.phase,
            minutes(phase_seconds(phase, now)),
            "" if phase.background else money(phase_cost(state, phase, now)),
        ]
        note = phase.reason or ("in the background" if phase.background else "")
        rows.append([*cells, phase.verdict or "running", note, *([str(phase.attempt)] if several else [])])
    between = minutes(sums.between_seconds)
    rows.append(
        ["between phases", between, money(sums.between_usd), "", "start, checks, landing", *([""] if several else [])]
    )
    rows.append(["all", minutes(sums.seconds), money(sums.usd), state.status, "", *([""] if several else [])])
    bar = [
        (
            phase.phase,
            phase_seconds(phase, now),
            f"{phase.phase}{f' (attempt {phase.attempt})' if several else ''}: "
            f"{minutes(phase_seconds(phase, now))}, {money(phase_cost(state, phase, now))}",
        )
        for phase in shown
        if not phase.background
    ]
    bar.append(("between phases", sums.between_seconds, f"between phases: {between}, {money(sums.between_usd)}"))
    whole = sum(seconds for _, seconds, _ in bar) or 1.0
    blocks: list[Block] = [
        Bar([(name, seconds / whole, words) for name, seconds, words in bar]),
        Table(["phase", "time", "cost", "verdict", "", *(["attempt"] if several else [])], rows, frozenset({1, 2})),
    ]
    if sums.first_step_seconds is not None:
        blocks.append(
            f"From start to first training step: {minutes(sums.first_step_seconds)}, {money(sums.first_step_usd)}."
        )
    if several:
        blocks += _attempts(state)
    return Section("Time and money", blocks)


def _attempts(state: RunState) -> list[Block]:
    rows = []
    whole = sum(attempt.end - attempt.began for attempt in state.attempts) or 1.0
    bar = []
    for attempt in state.attempts:
        seconds = attempt.end - attempt.began
        usd = None if attempt.price is None else seconds / 3600 * attempt.price
        went_on = f"from step {attempt.resumed_from.get('step')}" if attempt.resumed_from else ""
        ended = "" if attempt.code is None else str(attempt.code)
        name = f"attempt {attempt.number}"
        bar.append((name, seconds / whole, f"{name}: {minutes(seconds)}, {money(usd)}"))
        rows.append(
            [
                str(attempt.number),
                _when(iso(attempt.began)),
                minutes(seconds),
                money(usd),
                ended,
                attempt.reason or went_on,
            ]
        )
    header = ["attempt", "began", "time", "cost", "exit code", ""]
    return ["By attempt:", Bar(bar), Table(header, rows, frozenset({2, 3, 4}))]


def _samples(state: RunState, most: int = 12) -> Section:
    blocks: list[Block] = []
    before = None
    for sample in list(state.samples)[-most:]:
        step = f", step {sample['step']}" if sample.get("step") is not None else ""
        if (title := f"{sample['phase']}{step}:") != before:
            blocks.append(before := title)
        blocks.append(Code(str(sample["text"]).removeprefix("<|bos|>")))
    return Section("Samples", blocks)


def _checkpoints(state: RunState) -> Section:
    found = checkpoints(state)
    best: dict[str, float] = {}  # of each stage: their scores are of different data
    for one in found:
        if one["score"] is not None:
            best[_stage(one)] = min(one["score"], best.get(_stage(one), one["score"]))
    rows = []
    for one in found:
        score = "" if one["score"] is None else f"{one['score']:.4f}"
        mark = "best" if one["score"] is not None and one["score"] == best[_stage(one)] else ""
        secured = _when(one["secured"]) or "no"
        step = "" if one["step"] is None else str(one["step"])
        rows.append([one["group"], step, f"{one['bytes'] / 1e6:,.1f} MB", score, mark, secured])
    header = ["checkpoint", "step", "size", "val bpb", "", "in the bucket since"]
    return Section("Checkpoints", [Table(header, rows, frozenset({1, 2, 3}))] if rows else [])


def _stage(checkpoint: dict[str, Any]) -> str:
    return str(checkpoint["group"]).partition("/")[0]


def _remarks(state: RunState, own_report: str) -> Section:
    blocks: list[Block] = []
    if state.stop:
        blocks.append(f"Stopped ({state.stop['why']}): {state.stop['text']}{_idle(state)}")
    skipped = [[phase.phase, phase.reason or ""] for phase in state.phases if phase.verdict == "skipped"]
    warnings = [[f"{one.text}" + (f" ({one.count}×)" if one.count > 1 else ""), one.hint] for one in state.warnings]
    checks = [
        [str(one["name"]), str(one["seen"]), str(one["hint"] or "")] for one in state.checks if one["verdict"] != "pass"
    ]
    for title, header, rows in (
        ("Warnings:", ["warning", "what to do"], warnings),
        ("Checks before the run that were not green:", ["check", "seen", "what to do"], checks),
        ("Skipped:", ["phase", "why"], skipped),
        ("Not recognised in the script:", [""], [[text] for text in state.drift]),
    ):
        if rows:
            blocks += [title, Table(header, rows)]
    if any(group.kind == "report" for group in state.groups.values()):
        blocks.append(Link("Upstream's own report", own_report))
    return Section("Remarks", blocks)


def _idle(state: RunState) -> str:
    """What the time before a watchdog's stop cost: from the last sign of progress on."""
    if not state.stop or state.stop["why"] != "watchdog" or state.attempt is None:
        return ""
    signs = [
        phase.last_step[1] if phase.last_step else phase.began for phase in state.phases if phase.verdict == "failed"
    ]
    idle = state.stop["t"] - max(signs, default=state.attempt.began)
    return f". The time without progress: {minutes(idle)}, {money(dollars(idle, state.attempt.price))}"


def _how_to(state: RunState) -> Section:
    run = state.run
    commands = [
        ("Bring the model home, every byte checked", f"homerun pull {run} DIR"),
        ("Talk to it", f"homerun chat {run}"),
        ("Serve it, OpenAI-compatible", f"homerun serve {run}"),
        ("Run it again", reproduce(state)),
    ]
    if state.status not in ("good", "running"):
        commands.insert(0, ("Go on", f"homerun train --resume {run}"))
    blocks: list[Block] = []
    for what, command in commands:
        blocks += [f"{what}:", Code(command)]
    return Section("How to go on", blocks)


def reproduce(state: RunState) -> str:
    """The command that asks for the same run again, at the same commit."""
    argv = state.attempts[0].argv if state.attempts else []
    words = argv[2:] if argv[1:2] == ["train"] else argv[1:]
    commit = (state.upstream or {}).get("commit")
    if commit and not any(word.startswith("--ref") for word in words):
        words = [*words, "--ref", commit]
    return shlex.join(["homerun", "train", *words])
