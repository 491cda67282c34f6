"""The journal's metrics into TensorBoard event files, and into W&B for recipes that do not log there themselves.

    homerun report RUN --tensorboard DIR
    homerun report RUN --wandb

Every reading of the journal, one unbroken curve over all attempts: what a resume did again replaces what was lost.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from homerun.errors import RequestError
from homerun.journal import Event
from homerun.state import STEP_METRICS

PROJECT = "nanochat"  # upstream's own


class Reading(NamedTuple):
    """The values that one step of one phase measured; t in Unix seconds, seq of the event in the journal."""

    seq: int
    phase: str
    step: int
    t: float
    values: dict[str, float]


def readings(events: Iterable[Event]) -> list[Reading]:
    """In the journal's order; steps grow within a phase. An evaluation without a step is of its phase's last one."""
    curves: dict[tuple[str, str], list[Reading]] = {}
    last: dict[str, int] = {}
    for event in events:
        if event["type"] == "step" and event.get("step") is not None:
            values = {name: event[name] for name in STEP_METRICS if event.get(name) is not None}
            phase, step, kind = event["phase"], event["step"], "step"
            last[phase] = step
        elif event["type"] == "eval" and event.get("value") is not None:
            phase, kind = event["phase"], event["metric"]
            step = event["step"] if event.get("step") is not None else last.get(phase, 0)
            values = {event["metric"]: event["value"]}
        else:
            continue
        curve = curves.setdefault((phase, kind), [])
        while curve and curve[-1].step >= step:
            curve.pop()
        curve.append(Reading(event["seq"], phase, step, event["t"], values))
    return sorted(reading for curve in curves.values() for reading in curve)


def write_tensorboard(events: Iterable[Event], folder: Path) -> int:
    """One event file in `folder`, a tag for each phase and metric (`base_train/loss`); the number of readings."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event as Record
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        raise RequestError("tensorboard is not installed", "`pip install 'homerun[sinks]'`") from None
    found = readings(events)
    writer = EventFileWriter(str(folder))
    for reading in found:
        values = [
            Summary.Value(tag=f"{reading.phase}/{name}", simple_value=value) for name, value in reading.values.items()
        ]
        writer.add_event(Record(wall_time=reading.t, step=reading.step, summary=Summary(value=values)))
    writer.close()
    return len(found)


def write_wandb(events: Iterable[Event], run: str, config: dict[str, Any], project: str = PROJECT) -> int:
    """One W&B run whose id is the run's; the number of readings.

    W&B's own step is the event's place in the journal: W&B takes growing steps only, so a second call, later in the
    run, adds what is new and nothing twice. Key and mode (online, offline) are W&B's own variables. RequestError
    without a key that is needed.
    """
    try:
        import wandb
    except ImportError:
        raise RequestError("wandb is not installed", "`pip install 'homerun[sinks]'`") from None
    if os.environ.get("WANDB_MODE", "online") == "online" and not os.environ.get("WANDB_API_KEY"):
        raise RequestError("WANDB_API_KEY is not set", "Set it, or WANDB_MODE=offline and `wandb sync` later")
    found = readings(events)
    with wandb.init(project=project, id=run, name=run, config=config, resume="allow") as session:
        for phase in dict.fromkeys(reading.phase for reading in found):
            session.define_metric(f"{phase}/step")
            session.define_metric(f"{phase}/*", step_metric=f"{phase}/step")
        for reading in found:
            values = {f"{reading.phase}/{name}": value for name, value in reading.values.items()}
            session.log({f"{reading.phase}/step": reading.step, **values}, step=reading.seq)
    return len(found)
