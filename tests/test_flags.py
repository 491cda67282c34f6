"""Flags are read from a module's source, in both of upstream's styles, without importing it."""

import argparse
import importlib

import pytest

from homerun.upstream.flags import module_flags, read_flags

ARGPARSE = """
import argparse, nowhere_to_be_found
raise SystemExit("never imported")
parser = argparse.ArgumentParser()
parser.add_argument("-n", "--num-files", type=int, default=-1)
parser.add_argument('--eval_tokens', type=int, default=20*524288)
parser.add_argument("--fp8", action="store_true")
parser.add_argument("command", nargs="?", default="generate")
add = parser.add_argument
add("--ratio", default=compute())
"""
CONFIGURATOR = """
import os
run = "dummy" # a comment
depth = 20
eval_tokens = 20*524288
target_flops = -1.0
model_tag = None
_private = 1
device = pick()
config_keys = [k for k in globals()]
exec(open(os.path.join('nanochat', 'configurator.py')).read())
step = 3
"""


def test_argparse_flags_are_read_as_spelled():
    flags = read_flags(ARGPARSE)
    assert flags.style == "argparse"
    assert flags.names == {"-n", "--num-files", "--eval_tokens", "--fp8", "--ratio"}
    assert flags.defaults == {
        "-n": -1, "--num-files": -1, "--eval_tokens": 20 * 524288, "--fp8": False, "--ratio": None,
    }  # fmt: skip


def test_a_configurators_flags_are_the_plain_globals_above_it():
    flags = read_flags(CONFIGURATOR)
    assert flags.style == "configurator"
    assert flags.defaults == {
        "--run": "dummy", "--depth": 20, "--eval_tokens": 20 * 524288, "--target_flops": -1.0, "--model_tag": None,
    }  # fmt: skip


@pytest.mark.parametrize("asked", ["eval-tokens", "eval_tokens", "--eval-tokens", "--eval_tokens"])
def test_a_flag_is_spelled_as_that_source_spells_it(asked):
    assert read_flags(ARGPARSE).spell(asked) == "--eval_tokens"
    assert read_flags(CONFIGURATOR).spell(asked) == "--eval_tokens"
    assert read_flags(ARGPARSE).spell("save-every") is None


@pytest.mark.parametrize("source", ["", "def broken(:", "x = 9**9**9\nexec(open('configurator.py').read())", "\0"])
def test_any_source_gives_flags_or_none_and_never_an_error(source):
    assert read_flags(source).defaults.get("--x") is None


def test_a_modules_flags_come_from_the_worktree_or_from_our_own_package(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "x.py").write_text(ARGPARSE)
    assert module_flags(tmp_path, "scripts.x") == read_flags(ARGPARSE)
    assert module_flags(tmp_path, "scripts.y") is None
    assert module_flags(tmp_path, "homerun.no_such") is None
    ours = module_flags(tmp_path, "homerun.trainer.base_train")
    assert ours is not None and ours.spell("save_every") == "--save-every" and ours.spell("resume_from_step")


@pytest.mark.parametrize("name", ["dataset", "tok_train"])
def test_what_is_read_from_our_modules_is_what_argparse_has(name, tmp_path, monkeypatch):
    """The reader against argparse itself: run the module's own parser and look at what it holds."""
    seen: list[argparse.ArgumentParser] = []

    def parse_args(self, *_):
        seen.append(self)
        raise SystemExit(0)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    spec = importlib.util.find_spec(f"homerun.trainer.{name}")
    code = spec.loader.get_code(spec.name)
    with pytest.raises(SystemExit):
        exec(code, {"__name__": "__main__", "__file__": spec.origin})
    flags = module_flags(tmp_path, f"homerun.trainer.{name}")
    actions = [action for action in seen[0]._actions if action.option_strings and action.dest != "help"]
    assert flags.names == {option for action in actions for option in action.option_strings}
