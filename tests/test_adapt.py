"""Arguments adapted from outside: exact argvs, in the order in which the last one wins."""

import shlex

import pytest

from homerun.errors import RequestError
from homerun.upstream.adapt import Wishes, adapt, check_wishes, skip_reason
from homerun.upstream.flags import Flags
from homerun.upstream.plan import read_plan

DASHES = Flags(frozenset({"--depth", "--save-every", "--resume-from-step", "--max-seq-len"}), {}, "argparse")
UNDERSCORES = Flags(frozenset({"--depth", "--save_every", "--max_seq_len", "--run"}), {}, "configurator")
NOTHING = Flags(frozenset(), {}, "argparse")


def run(line: str, wishes: Wishes, flags: Flags | None = None) -> str:
    plan = read_plan(line.encode())
    argv, _ = adapt(plan.steps[0], shlex.split(line), wishes, flags)
    return shlex.join(argv)


@pytest.mark.parametrize(
    ("line", "nproc", "becomes"),
    [
        ("torchrun --nproc_per_node=8 -m s.x -- --d=2", 2, "torchrun --nproc_per_node=2 -m s.x -- --d=2"),
        ("torchrun --standalone --nproc-per-node=8 -m s.x", 1, "torchrun --standalone --nproc_per_node=1 -m s.x"),
        ("torchrun --nproc_per_node 8 --standalone -m s.x", 4, "torchrun --nproc_per_node=4 --standalone -m s.x"),
        ("torchrun --nproc_per_node=gpu -m s.x", 4, "torchrun --nproc_per_node=4 -m s.x"),
        ("torchrun -m s.x -- --nproc_per_node=3", 2, "torchrun --nproc_per_node=2 -m s.x -- --nproc_per_node=3"),
        ("torchrun --standalone --nproc_per_node=8 -m s.x -- --d=2", 8, None),
        ("torchrun --standalone --nproc_per_node=8 -m s.x -- --d=2", None, None),
        ("torchrun --standalone --nproc_per_node=8 -m s.x -- --d=2 -- y", 0, "python -m s.x --d=2 -- y"),
        ("torchrun --standalone --nproc_per_node=8 -m s.x", 0, "python -m s.x"),
        ("torchrun --rdzv-backend c10d --nproc_per_node 8 -m s.x -- -i sft", 0, "python -m s.x -i sft"),
        ("torchrun --standalone train.py --d=2", 0, "python train.py --d=2"),
        ("uv run torchrun --standalone -m s.x -- -i sft", 0, "uv run python -m s.x -i sft"),
        (".venv/bin/torchrun --standalone -m s.x", 0, ".venv/bin/python -m s.x"),
        ("python -m s.x --nproc_per_node=8", 2, None),
    ],
)  # fmt: skip
def test_the_number_of_processes_is_the_one_asked_for(line, nproc, becomes):
    assert run(line, Wishes(nproc=nproc)) == (becomes or line)


def test_saving_and_resuming_go_to_base_training_only_and_the_users_own_come_last():
    wishes = Wishes(save_every=50, resume_step=100, phase_args={"base_train": "--save_every=7 --depth 2"})
    base = "torchrun --standalone --nproc_per_node=8 -m scripts.base_train -- --save-every=-1"
    assert run(base, wishes, DASHES) == f"{base} --save-every=50 --resume-from-step=100 --save-every=7 --depth 2"
    assert run("python -m scripts.chat_sft", wishes, DASHES) == "python -m scripts.chat_sft"
    # what that commit has not is not given
    assert run(base, Wishes(resume_step=100, save_every=50), UNDERSCORES) == f"{base} --save_every=50"
    assert run(base, Wishes(resume_step=100, save_every=50), NOTHING) == base
    assert run(base, Wishes(resume_step=100, save_every=50), None) == base


def test_arguments_are_spelled_as_the_commit_spells_them():
    line = "python -m scripts.base_train"
    wishes = Wishes(phase_args={"base_train": "--max-seq-len=256 --depth 2 --run='a b'"})
    assert run(line, wishes, UNDERSCORES) == f"{line} --max_seq_len=256 --depth=2 '--run=a b'"
    assert run(line, wishes, DASHES) == f"{line} --max-seq-len=256 --depth 2 '--run=a b'"


def test_a_phases_own_arguments_come_after_its_modules():
    wishes = Wishes(phase_args={"chat_eval-sft": "-x 8", "chat_eval": "-x 4"})
    assert run("python -m scripts.chat_eval -i sft", wishes).endswith("-i sft -x 4 -x 8")
    assert run("python -m scripts.chat_eval -i mid", wishes).endswith("-i mid -x 4")


def test_every_change_is_told_with_the_words_that_came_and_went():
    plan = read_plan(b"torchrun --nproc_per_node=8 -m scripts.base_train --")
    wishes = Wishes(nproc=2, save_every=50, phase_args={"base_train": "--depth=2"})
    step = plan.steps[0]
    _, changes = adapt(step, list(step.words), wishes, DASHES)
    assert {change.phase for change in changes} == {"base_train"}
    assert [(change.added, change.removed) for change in changes] == [
        (("--nproc_per_node=2",), ("--nproc_per_node=8",)),
        (("--save-every=50",), ()),
        (("--depth=2",), ()),
    ]
    assert adapt(step, list(step.words), Wishes(), DASHES) == (list(step.words), [])


def test_a_command_that_the_plan_does_not_know_is_still_given_the_processes_asked_for():
    argv, changes = adapt(None, ["torchrun", "--nproc_per_node=8", "-m", "scripts.base_train"], Wishes(nproc=1), None)
    assert argv == ["torchrun", "--nproc_per_node=1", "-m", "scripts.base_train"]
    assert [change.phase for change in changes] == ["base_train"]
    assert adapt(None, ["ls"], Wishes(nproc=1), None) == (["ls"], [])


def test_what_serves_for_ever_is_skipped_and_what_is_asked_for_by_either_name():
    eval_, web, sync = read_plan(b"python -m scripts.chat_eval -i sft\npython -m scripts.chat_web\nuv sync").steps
    assert skip_reason(web, Wishes()) == "it would serve for ever"
    assert skip_reason(eval_, Wishes()) is skip_reason(sync, Wishes()) is None
    for name in ("chat_eval", "chat_eval-sft"):
        assert skip_reason(eval_, Wishes(skip=frozenset({name}))) == "you asked to skip it"
    assert skip_reason(sync, Wishes(skip=frozenset({"uv-sync"})))


def test_a_wish_for_what_is_not_there_is_an_error_that_lists_what_is():
    plan = read_plan(b"uv sync\npython -m scripts.base_train\npython -m scripts.base_train")
    for wishes in (Wishes(skip=frozenset({"mid_train"})), Wishes(phase_args={"mid_train": "--depth=2"})):
        with pytest.raises(RequestError, match=r"mid_train.*uv-sync, base_train, base_train-2"):
            check_wishes(plan, wishes, lambda _: DASHES)
    with pytest.raises(RequestError, match=r"no --dpth.*--depth"):
        check_wishes(plan, Wishes(phase_args={"base_train-2": "--dpth=2"}), lambda _: DASHES)
    fine = Wishes(phase_args={"base_train": "--dep=2 --max_seq_len=3"}, skip=frozenset({"base_train-2", "uv-sync"}))
    check_wishes(plan, fine, lambda _: DASHES)
    check_wishes(plan, Wishes(phase_args={"base_train": "--anything"}), lambda _: None)
