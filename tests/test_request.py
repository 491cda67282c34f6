"""A request: arguments over settings, refused by name when they are wrong."""

import json
from pathlib import Path

import pytest

from homerun.errors import RequestError
from homerun.job.request import Request, parse_phase_args
from homerun.job.run import fingerprint, new_id
from homerun.settings import Settings


def _request(environ=None, **arguments):
    return Request.from_arguments(Settings.load(environ or {}), environ=environ or {}, **arguments)


def test_phase_arguments_add_up_and_the_command_line_wins_over_the_environment():
    request = _request(
        {"HOMERUN_PHASE_ARGS": json.dumps({"base_train": "--depth=4", "chat_eval": "-x 4"})},
        phase_args=["base_train=--depth=26 --device-batch-size=16", "base_train=--run='a b'"],
    )
    assert request.phase_args == {
        "base_train": "--depth=26 --device-batch-size=16 --run='a b'",
        "chat_eval": "-x 4",
    }


@pytest.mark.parametrize("pair", ["base_train", "=--depth=3", "--depth=3", "base_train='--depth=3"])
def test_phase_arguments_that_cannot_be_meant_are_refused(pair):
    with pytest.raises(RequestError):
        parse_phase_args([pair])


@pytest.mark.parametrize("value", ["{", "[]", '{"base_train": 3}'])
def test_phase_arguments_in_the_environment_must_be_an_object_of_strings(value):
    with pytest.raises(RequestError, match="HOMERUN_PHASE_ARGS"):
        _request({"HOMERUN_PHASE_ARGS": value})


def test_a_script_that_is_not_there_is_refused():
    with pytest.raises(RequestError, match=r"no/such\.sh"):
        _request(script="no/such.sh")


def test_a_script_by_its_path_is_upstreams_own_where_it_lies_in_upstream(tmp_path, monkeypatch):
    checkout = tmp_path / "nanochat"
    for folder in ("runs", "mine"):
        (checkout / folder).mkdir(parents=True)
        (checkout / folder / "small.sh").touch()
    (tmp_path / "own.sh").touch()
    upstream = str(checkout)
    monkeypatch.chdir(tmp_path)
    assert _request(script="runs/miniseries.sh").script == "runs/miniseries.sh"  # by a URL: known after the fetch
    assert _request(script="mine/small.sh", upstream=upstream).script == "mine/small.sh"
    assert _request(script="nanochat/runs/small.sh", upstream=upstream).script == "runs/small.sh"
    assert _request(script="own.sh", upstream=upstream).recipe == Path("own.sh")
    monkeypatch.chdir(checkout)
    asked = _request(script="runs/small.sh", upstream=".")
    assert (asked.recipe, asked.script) == (None, "runs/small.sh")


@pytest.mark.parametrize(("value", "nproc"), [("8", 8), ("0", 0), ("auto", None), (None, None)])
def test_nproc_is_a_number_or_left_to_the_machine(value, nproc):
    assert _request(nproc=value).nproc == nproc


def test_an_id_names_the_depth_where_there_is_just_one():
    assert new_id("speedrun", {20}).startswith("nanochat-d20-")
    assert new_id("speedrun", {12, 14}).startswith("speedrun-2")
    assert new_id("toy", {4}).startswith("toy-d4-")
    assert new_id("my run!", set()).startswith("my-run-2")


def test_the_same_request_has_the_same_fingerprint_and_another_has_not():
    one = fingerprint(script="x", phase_args={"a": "1", "b": "2"})
    assert one == fingerprint(phase_args={"b": "2", "a": "1"}, script="x")
    assert one != fingerprint(script="y", phase_args={"a": "1", "b": "2"})


FIRST = {
    "upstream": {"url": "/somewhere/nanochat", "ref": None, "commit": "abc"},
    "script": {"path": "runs/runcpu.sh"},
    "request": {"phase_args": {"base_train": "--depth=26", "tok_train": "--x"}, "skip": ["tok_eval"], "nproc": 4},
}


def test_a_resume_leaves_nothing_of_the_first_request_out():
    asked = _request().remembering(FIRST, Path("src"))
    assert (asked.script, asked.recipe, asked.upstream) == ("runs/runcpu.sh", None, "/somewhere/nanochat")
    assert (asked.phase_args, asked.skip, asked.nproc) == (FIRST["request"]["phase_args"], {"tok_eval"}, 4)
    assert asked.event() == FIRST["request"]


def test_what_a_resume_asks_for_comes_before_what_was(tmp_path):
    now = _request(phase_args=["base_train=--depth=26 --device-batch-size=8"], nproc="2", upstream=str(tmp_path))
    asked = now.remembering(FIRST, Path("src"))
    assert asked.phase_args == {"base_train": "--depth=26 --device-batch-size=8", "tok_train": "--x"}
    assert (asked.nproc, asked.upstream) == (2, str(tmp_path))


def test_a_recipe_goes_on_from_the_runs_own_copy():
    first = {**FIRST, "upstream": None, "script": {"path": "toy.sh"}}
    assert _request().remembering(first, Path("run/src")).recipe == Path("run/src/toy.sh")
