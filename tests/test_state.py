"""RunState: a journal folded, in flat memory, over any number of attempts."""

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from homerun.curve import POINTS, Curve
from homerun.state import RunState
from tests.story import Story


def test_a_curve_keeps_every_spike_and_few_points():
    curve = Curve()
    for step in range(1_000_000):
        curve.add(step, float(step), 100.0 if step == 123_456 else -100.0 if step == 700_001 else 1.0)
    points = curve.points()
    assert len(points) <= POINTS + 2
    assert (123_456, 100.0) in {(point.step, point.value) for point in points}
    assert (700_001, -100.0) in {(point.step, point.value) for point in points}
    assert points[-1].step == 999_999


@given(st.lists(st.tuples(st.integers(0, 60), st.floats(-5, 5)), max_size=300), st.integers(4, 20))
def test_a_curve_has_growing_steps_and_ends_with_the_newest_reading(readings, limit):
    curve = Curve(limit)
    for t, (step, value) in enumerate(readings):
        curve.add(step, float(t), value)
    points = curve.points()
    steps = [point.step for point in points]
    assert steps == sorted(set(steps))
    assert len(points) <= limit + 3
    if readings:
        assert (points[-1].step, points[-1].value) == readings[-1]


def test_a_resume_makes_one_unbroken_curve_without_the_lost_steps():
    story = Story()
    for first, last in [(0, 150), (100, 200)]:
        story("attempt.begin")
        story("phase.begin", phase="base_train", argv=[])
        for step in range(first, last):
            story("step", 1.0, phase="base_train", step=step, loss=float(first))
    points = story.state().curve("base_train", "loss")
    assert [point.step for point in points] == list(range(200))
    assert [point.value for point in points] == [0.0] * 100 + [100.0] * 100


def test_an_attempt_that_died_leaves_no_phase_running():
    story = Story()
    story("attempt.begin")
    story("phase.begin", phase="base_train")
    story("step", 5, phase="base_train", step=1)
    story("attempt.begin", 100)
    state = story.state()
    assert state.running == []
    assert state.phases[0].verdict == "failed"
    assert state.phases[0].seconds == 5
    assert state.attempts[0].end == state.attempts[0].began + 5
    assert state.status == "running"


def test_the_status_is_the_runs_verdict_until_another_attempt_begins():
    story = Story()
    story("run.begin", run="r1", recipe="toy")
    story("attempt.begin")
    story("attempt.end", code=6, reason="budget")
    assert story.state().status == "interrupted"
    story("run.end", code=6, verdict="stopped")
    assert (story.state().status, story.state().code) == ("stopped", 6)
    story("attempt.begin")
    assert (story.state().status, story.state().code) == ("running", None)


def test_the_best_value_is_the_lowest_bpb_and_the_highest_accuracy():
    story = Story()
    for step, bpb, accuracy in [(0, 3.0, 0.1), (10, 1.0, 0.9), (20, 1.5, 0.5)]:
        story("eval", phase="base_train", metric="val_bpb", value=bpb, step=step)
        story("eval", phase="chat_eval", metric="accuracy/ARC", value=accuracy)
    evals = story.state().evals
    bpb, accuracy = evals["base_train", "val_bpb"], evals["chat_eval", "accuracy/ARC"]
    assert (bpb.value, bpb.best, bpb.best_step) == (1.5, 1.0, 10)
    assert (accuracy.value, accuracy.best) == (0.5, 0.9)


def test_a_group_that_is_written_again_is_no_longer_secured():
    story = Story()
    story("group", group="tokenizer", bytes=5, files=2)
    story("secured", group="tokenizer", bytes=5, seconds=0.1)
    assert [group.group for group in story.state().secured] == ["tokenizer"]
    story("group", group="tokenizer", bytes=6, files=2)
    assert story.state().secured == []


def test_options_are_read_as_upstream_reads_them_the_last_one_winning():
    story = Story()
    story("phase.begin", phase="p", argv=["torchrun", "--save_every=10", "--depth", "4", "--save-every=20"])
    phase = story.state().phases[0]
    assert (phase.option("save-every"), phase.option("depth"), phase.option("absent")) == ("20", "4", None)


def test_unknown_and_meagre_events_are_let_pass():
    story = Story()
    story("something.new", x=1)
    story("step", phase="p")
    story("phase.end", phase="never-begun", status=0)
    story("secured", group="never-offered")
    assert story.state().seq == 3


def test_memory_is_flat_over_a_long_journal():
    state = RunState()
    sizes = []
    tracemalloc.start()
    for seq in range(60_000):
        event = {"seq": seq, "t": seq * 1.0, "attempt": 1, "phase": "base_train"}
        state.apply(event | {"type": "step", "step": seq, "loss": 3.0, "dt_ms": 50.0, "tok_per_sec": 1000})
        state.apply(event | {"type": "warning", "text": f"odd {seq}"})
        state.apply(event | {"type": "sample", "text": f"text {seq}"})
        state.apply(event | {"type": "machine", "cpu": 3.0, "gpus": []})
        if seq in (20_000, 59_999):
            sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert sizes[1] < sizes[0] * 1.3
    assert state.warned == 60_000
