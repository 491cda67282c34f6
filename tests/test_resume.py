"""What a resume skips: only phases that ended well and whose own artifacts are here and proven."""

from dataclasses import dataclass, field

import pytest

from homerun.job.resume import Resume, history, required


@dataclass
class Step:
    module: str | None
    counted: bool = True


@dataclass
class Phase:
    """The few attributes of the runner's Phase that a resume reads."""

    name: str
    step: Step | None
    line: int
    index: int = 0
    occurrence: int = 1
    original: list[str] = field(default_factory=list)


def _phase(name, line, module=None, **more):
    return Phase(name, Step(module or f"scripts.{name}", more.pop("counted", True)), line, **more)


def _events(*phases, attempt=1):
    """(name, line, verdict or None, [(group, kind, step)])"""
    for name, line, verdict, groups in phases:
        base = {"attempt": attempt, "phase": name}
        log = f"logs/a01/raw/00{line:02d}-{name}.log"
        yield {"type": "phase.begin", **base, "line": line, "index": 0, "occurrence": 1, "original": [], "log": log}
        for group, kind, step in groups:
            yield {"type": "group", **base, "group": group, "kind": kind, "step": step}
        if verdict:
            yield {"type": "phase.end", **base, "verdict": verdict}


PAST = [
    ("tok_train", 10, "ok", [("tokenizer", "tokenizer", None)]),
    ("base_train", 20, "ok", [(f"base_checkpoints/d2/{step:06d}", "checkpoint", step) for step in (250, 500)]),
    ("base_eval", 30, "ok", []),
    ("chat_sft", 40, None, []),
]
SFT = ("chatsft_checkpoints/d2/000010", "checkpoint", 10)
ALL = {"tokenizer", "base_checkpoints/d2/000500", "logs/a01/0030-base_eval.log"}


def _skips(resume):
    names = [("tok_train", 10), ("base_train", 20), ("base_eval", 30), ("chat_sft", 40), ("chat_eval", 50)]
    return [name for name, line in names if resume.reason_to_skip(_phase(name, line))]


def _event_list(*phases):
    return [{k: v for k, v in event.items() if v is not None} for event in _events(*(phases or PAST))]


def test_phases_that_ended_well_with_their_artifacts_proven_are_skipped():
    assert _skips(Resume(_event_list(), ALL)) == ["tok_train", "base_train", "base_eval"]


def test_a_phase_whose_last_checkpoint_is_not_here_runs_again_and_so_does_all_that_built_on_it():
    here = (ALL - {"base_checkpoints/d2/000500"}) | {"base_checkpoints/d2/000250"}
    assert _skips(Resume(_event_list(), here)) == ["tok_train"]


def test_a_line_in_the_log_is_not_enough():
    assert _skips(Resume(_event_list(), set())) == []


def test_a_phase_that_did_not_end_is_never_skipped():
    events = _event_list()
    events = [e for e in events if not (e["type"] == "phase.end" and e["phase"] == "base_train")]
    assert _skips(Resume(events, ALL)) == ["tok_train"]


def test_an_evaluation_that_must_run_again_takes_no_training_with_it():
    events = [e for e in _event_list() if not (e["type"] == "phase.end" and e["phase"] == "base_eval")]
    assert "base_train" in _skips(Resume(events, ALL))


@pytest.mark.parametrize("verdict", ["harmless", None])
def test_an_evaluation_that_failed_or_was_cut_short_before_them_does_not_make_proven_trainings_run_again(verdict):
    past = [PAST[0], ("tok_eval", 15, verdict, []), *PAST[1:3], ("chat_sft", 40, "ok", [SFT])]
    resume = Resume(_event_list(*past), ALL | {SFT[0]})
    names = [("tok_train", 10), ("tok_eval", 15), ("base_train", 20), ("base_eval", 30), ("chat_sft", 40)]
    skipped = [name for name, line in names if resume.reason_to_skip(_phase(name, line))]
    assert skipped == ["tok_train", "base_train", "base_eval", "chat_sft"]


@pytest.mark.parametrize("phase", [_phase("dataset", 5, "nanochat.dataset"), Phase("uv-sync", Step(None), 3)])
def test_set_up_and_downloads_always_run_again(phase):
    events = _events((phase.name, phase.line, "ok", []))
    assert Resume(list(events), {f"logs/a01/00{phase.line:02d}-{phase.name}.log"}).reason_to_skip(phase) is None


def test_in_a_loop_other_arguments_are_another_phase():
    events = _event_list()
    same = _phase("base_train", 20, counted=False)
    other = _phase("base_train", 20, counted=False, original=["--depth=14"])
    assert Resume(events, ALL).reason_to_skip(same)
    assert Resume(events, ALL).reason_to_skip(other) is None


def test_the_newest_attempt_speaks_and_keeps_what_earlier_ones_made():
    again = [("base_train", 20, "ok", [])]
    events = _event_list() + list(_events(*again, attempt=2))
    past = history(events)[20, 0, 1]
    assert past.attempt == 2
    assert required(past) == {"base_checkpoints/d2/000500"}
