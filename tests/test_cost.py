"""What time costs, and what is projected from it. Budget and deadline in whole runs: test_limits.py."""

import pytest

from homerun.budget import Limits, check_limits, landing_seconds
from homerun.cost import PaidClock, dollars, machine_price, money, phase_cost, totals
from homerun.projection import pace, project
from tests.story import Story

PRICE = 24.0  # USD per hour


def test_a_phase_costs_its_time_and_the_background_nothing_more():
    story = Story()
    story("attempt.begin", price_usd_per_hour=PRICE)
    story("phase.begin", 600, phase="dataset", background=True)
    story("phase.begin", phase="base_train")
    story("step", 300, phase="base_train", step=0)
    story("phase.end", 3300, phase="base_train", seconds=3600)
    story("phase.end", phase="dataset", seconds=3600)
    story("attempt.end", 600, code=0)
    state = story.state()
    assert [phase_cost(state, phase, state.updated) for phase in state.phases] == [0.0, 24.0]
    sums = totals(state)
    assert (sums.seconds, sums.usd) == (4800, 32.0)
    assert (sums.between_seconds, sums.between_usd) == (1200, 8.0)
    assert (sums.first_step_seconds, sums.first_step_usd) == (900, 6.0)


def test_the_time_between_attempts_is_free():
    story = Story()
    story("attempt.begin", price_usd_per_hour=PRICE)
    story("attempt.end", 3600, code=143)
    story("attempt.begin", 86_400, price_usd_per_hour=PRICE)
    story("attempt.end", 1800, code=0)
    state = story.state()
    assert totals(state).usd == 36.0
    clock = PaidClock(state)
    assert clock.hours(story.t - 1800 - 40_000) == 1.0
    assert clock.usd(story.t) == 36.0


def test_an_unknown_price_makes_the_sum_unknown_never_smaller():
    story = Story()
    story("attempt.begin", price_usd_per_hour=PRICE)
    story("attempt.end", 3600, code=143)
    story("attempt.begin")
    story("attempt.end", 3600, code=0)
    assert totals(story.state()).usd is None
    assert money(None) == "?"


@pytest.mark.parametrize(
    ("names", "setting", "price"),
    [
        (["NVIDIA H100 80GB HBM3"] * 8, None, 8 * 3.49),
        (["NVIDIA H100 80GB HBM3"] * 8, 3.0, 24.0),
        (["NVIDIA H200", "NVIDIA A100"], None, None),
        (["NVIDIA GeForce RTX 3090"], None, None),
        ([], 0.5, 0.5),
        ([], None, None),
    ],
)
def test_the_price_is_the_settings_then_the_tables_then_unknown(names, setting, price):
    found = machine_price([{"name": name} for name in names], setting)
    assert found.usd_per_hour == price
    assert found.source


def _training(steps, dt, overhead=0.0, total=1000):
    story = Story()
    story("plan", phases=[{"name": "base_train"}, {"name": "chat_sft"}])
    story("attempt.begin", price_usd_per_hour=PRICE)
    story("phase.begin", phase="base_train", name="base_train")
    for step in range(steps):
        story("step", dt(step) + overhead, phase="base_train", step=step, total=total, dt_ms=dt(step) * 1000)
    return story


def test_the_projection_stands_against_stragglers_and_counts_evaluations():
    calm = _training(100, lambda step: 1.0).state()
    straggling = _training(100, lambda step: 50.0 if step == 0 else 1.0).state()
    evaluating = _training(100, lambda step: 1.0, overhead=0.5).state()
    assert pace(calm.phases[0]).seconds == pytest.approx(1.0)
    assert pace(straggling.phases[0]).seconds == pytest.approx(1.0)
    assert pace(evaluating.phases[0]).seconds == pytest.approx(1.5)
    projection = project(calm, calm.updated)
    assert projection.phase_seconds == pytest.approx(901)
    assert projection.usd == pytest.approx(dollars(1001, PRICE), rel=0.01)
    assert projection.floor  # nobody knows how long chat_sft takes


def test_the_projection_takes_later_phases_from_an_earlier_attempt():
    story = Story()
    story("plan", phases=[{"name": "base_train"}, {"name": "chat_sft"}])
    story("attempt.begin", price_usd_per_hour=PRICE)
    story("phase.begin", phase="chat_sft", name="chat_sft")
    story("phase.end", 500, phase="chat_sft", seconds=500, verdict="ok", status=0)
    story("attempt.begin", price_usd_per_hour=PRICE)
    story("phase.begin", phase="base_train", name="base_train")
    for step in range(10):
        story("step", 1.0, phase="base_train", step=step, total=100, dt_ms=1000)
    projection = project(story.state(), story.t)
    assert not projection.floor
    assert projection.run_seconds == pytest.approx(500 + 10 + 91 + 500)


def test_with_nothing_saved_and_no_hope_of_a_save_it_stops_at_once():
    story = _training(60, lambda step: 1.0)
    verdict = check_limits(story.state(), Limits(deadline=story.t + 300), story.t, reserve_seconds=30)
    assert verdict.stop_now
    assert verdict.at_step is None
    assert "nothing is saved yet" in verdict.warn


def test_without_a_limit_or_a_price_nothing_is_stopped():
    story = _training(60, lambda step: 1.0)
    assert check_limits(story.state(), Limits(), story.t, 30).fits
    for event in story.events:
        event.pop("price_usd_per_hour", None)
    assert check_limits(story.state(), Limits(cap_usd=0.01), story.t, 30).fits


def test_a_phase_without_steps_is_stopped_while_its_work_can_still_land():
    story = Story()
    story("attempt.begin", price_usd_per_hour=PRICE)
    story("phase.begin", phase="base_eval")
    state = story.state()
    assert not check_limits(state, Limits(deadline=story.t + 100), story.t, reserve_seconds=60).stop_now
    assert check_limits(state, Limits(deadline=story.t + 60), story.t, reserve_seconds=60).stop_now


def test_the_landing_is_measured_where_it_can_be():
    story = Story()
    story("group", group="g", step=5, phase="p")
    story("secured", 20, group="g", seconds=18)
    assert landing_seconds(story.state(), 600) == 34
