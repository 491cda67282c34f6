"""The gauge of what would be lost: never less than what is really lost."""

from dataclasses import dataclass

from homerun.job.gauge import READING_LAG, Gauge


@dataclass
class File:
    mtime_ns: int


@dataclass
class Group:
    name: str
    step: int | None
    files: tuple[File, ...]


def _group(name, step=None, at=0.0):
    return Group(name, step, (File(int(at * 1e9)),))


def _gauge():
    return Gauge(began=1000.0, price_per_hour=24.0, resumable=frozenset({"base_train"}))


def test_before_anything_is_secured_all_work_since_the_begin_is_at_risk():
    reading = _gauge().read(1600.0, 5, 1600.0)
    assert reading == {"lost_minutes": 10.0, "lost_usd": 4.0, "secured_step": None, "pending_bytes": 5}


def test_a_checkpoint_counts_from_the_step_that_it_holds_not_from_its_upload():
    gauge = _gauge()
    gauge.step("base_train", 249, 1100.0)
    gauge.offered(_group("base_checkpoints/d2/000250", 250, at=1130), "base_train")
    gauge.secured(_group("base_checkpoints/d2/000250", 250))
    assert gauge.read(1400.0, 0, 1400.0)["lost_minutes"] == round((300 + READING_LAG) / 60, 3)
    assert gauge.read(1400.0, 0, 1400.0)["secured_step"] == 250


def test_a_model_without_its_optimizer_secures_nothing():
    gauge = _gauge()
    gauge.step("base_train", 249, 1100.0)
    for name in ("base_checkpoints/d2/000250", "base_checkpoints/d2/000250.optim"):
        gauge.offered(_group(name, 250), "base_train")
    gauge.secured(_group("base_checkpoints/d2/000250", 250))
    assert gauge.read(1400.0, 0, 1400.0)["secured_step"] is None
    gauge.secured(_group("base_checkpoints/d2/000250.optim", 250))
    assert gauge.read(1400.0, 0, 1400.0)["secured_step"] == 250


def test_a_checkpoint_of_a_phase_that_cannot_resume_secures_nothing_before_the_phase_ends():
    gauge = _gauge()
    gauge.step("chat_sft", 9, 1100.0)
    gauge.offered(_group("chatsft_checkpoints/d2/000010", 10), "chat_sft")
    gauge.secured(_group("chatsft_checkpoints/d2/000010", 10))
    assert gauge.read(1400.0, 0, 1400.0)["lost_minutes"] > 6
    gauge.phase_ended("chat_sft", 1390.0)
    assert gauge.read(1400.0, 0, 1400.0)["lost_minutes"] == round(10 / 60, 3)


def test_a_phase_that_ended_is_secured_only_when_all_before_it_is():
    gauge = _gauge()
    gauge.offered(_group("tokenizer", at=1050), "tok_train")
    gauge.phase_ended("tok_train", 1060.0)
    gauge.phase_ended("tok_eval", 1090.0)
    assert gauge.read(1100.0, 0, 1100.0)["lost_minutes"] == round(100 / 60, 3)
    gauge.secured(_group("tokenizer"))
    assert gauge.read(1100.0, 0, 1100.0)["lost_minutes"] == round(10 / 60, 3)


def test_an_evaluation_is_secured_only_with_its_log():
    gauge = _gauge()
    gauge.log_offered("logs/a01/0007-base_eval.log", "base_eval")
    gauge.phase_ended("base_eval", 1090.0)
    assert gauge.read(1100.0, 0, 1100.0)["lost_minutes"] == round(100 / 60, 3)
    gauge.log_secured("logs/a01/0007-base_eval.log")
    assert gauge.read(1100.0, 0, 1100.0)["lost_minutes"] == round(10 / 60, 3)


def test_an_end_that_the_bucket_has_not_been_told_of_is_not_secured():
    gauge = _gauge()
    gauge.phase_ended("chat_sft", 1090.0)
    assert gauge.read(1100.0, 0, journal_at=1089.0)["lost_minutes"] == round(100 / 60, 3)
    assert gauge.read(1100.0, 0, journal_at=1091.0)["lost_minutes"] == round(10 / 60, 3)
