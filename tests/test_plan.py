"""Script → plan: which commands are phases, under what conditions, and that their lines are bash's own LINENO."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homerun.errors import RequestError
from homerun.upstream.plan import Plan, module_of, read_plan


def plan_of(script: str) -> Plan:
    return read_plan(textwrap.dedent(script).encode())


def names(plan: Plan, **conditions: bool) -> list[str]:
    return [s.name for s in plan.steps if all(getattr(s, key) is value for key, value in conditions.items())]


def test_a_phase_is_named_by_its_module_and_what_tells_it_apart():
    plan = plan_of("""
        curl -LsSf https://astral.sh/uv/install.sh | sh
        curl -L -o $BASE/identity.jsonl https://host/x
        uv venv
        uv sync --extra gpu
        uv run maturin develop
        python -m nanochat.report reset
        python -m nanochat.dataset -n 8
        python -m nanochat.dataset -n 240 &
        torchrun --standalone --nproc_per_node=8 -m scripts.chat_eval -- -i mid
        torchrun --standalone --nproc_per_node=8 -m scripts.chat_eval -- -i sft
        torchrun --standalone -m scripts.chat_eval -- -i sft -a GSM8K
        x=$(python -c 'print(1)')
    """)
    assert names(plan) == [
        "curl-astral.sh", "sh", "curl-identity.jsonl", "uv-venv", "uv-sync", "uv-run-maturin", "report-reset",
        "dataset", "dataset-2", "chat_eval-mid", "chat_eval-sft", "chat_eval-sft-2", "python-c",
    ]  # fmt: skip
    assert plan.launchers() == ("curl", "sh", "uv", "python", "torchrun")
    assert plan.drift == ()


@given(st.lists(st.text(alphabet="abc $/\\'\"*?.-\n", min_size=1, max_size=12), max_size=6))
@settings(max_examples=50, deadline=None)
def test_names_are_unique_and_safe_in_a_file_name(words):
    line = "python -m scripts.x " + " ".join("'" + word.replace("'", "") + "'" for word in words)
    plan = read_plan(f"{line}\n{line}\n".encode())
    assert len({step.name for step in plan.steps}) == len(plan.steps) == 2
    assert all(step.name and "/" not in step.name and not step.name.startswith(("-", ".")) for step in plan.steps)


@pytest.mark.parametrize(
    ("script", "tested", "counted", "background", "piped"),
    [
        ("one -m; two", "", "one two", "", ""),
        ("one && two", "one", "one", "", ""),
        ("one && two || three", "one two", "one", "", ""),
        ("[ -d x ] || one", "", "", "", ""),
        ("! one", "one", "one", "", ""),
        ("if one; two; then three; elif four; then five; else six; fi", "two four", "one two", "", ""),
        ("while one; do two; done", "one", "", "", ""),
        ("until ! one; do two; done", "one", "", "", ""),
        ("for x in $(one); do two; done", "", "one", "", "one"),
        ("for ((i=0; i<3; i++)); do one; done", "", "", "", ""),
        ("case $(one) in a) two;; esac", "", "one", "", "one"),
        ("one | two | tee log", "", "one two", "", "one two"),
        ("one | two || exit 1", "two", "one two", "", "one two"),
        ("! one | two", "two", "one two", "", "one two"),
        ("! one 2>&1 | two", "two", "one two", "", "one two"),
        ("if one | two; then :; fi", "two", "one two", "", "one two"),
        ("one & two", "", "one two", "one", ""),
        ("{ one; two; } & three", "", "one two three", "one two", ""),
        ("(one; two) || three", "two", "one two", "", ""),
        ("x=$(one)", "", "one", "", "one"),
        ("if x=$(one); then two; fi", "one", "one", "", "one"),
        ("echo `one` <(two)", "", "one two", "", "one two"),
        ("f() { one; }; f", "", "", "", ""),
        ("f() { one; }; if f; then two; fi", "one", "", "", ""),
        ("f() { one; }; if f; then two; fi; f", "", "", "", ""),
        ("A=1 one > log 2>&1", "", "one", "", ""),
        ("time one", "", "one", "", ""),
        ("cat <<END | one\nx\nEND\n", "", "one", "", "one"),
        ("one <<< text", "", "one", "", ""),
        ("[[ -f x ]] && { one; two; }", "", "", "", ""),
        ("command -v one || two", "", "", "", ""),
    ],
)
def test_conditions_are_read_as_bash_would(script, tested, counted, background, piped):
    plan = read_plan(script.encode())
    assert names(plan, tested=True) == tested.split()
    assert names(plan, counted=True) == counted.split()
    assert names(plan, background=True) == background.split()
    assert names(plan, piped=True) == piped.split()


def test_builtins_functions_and_housekeeping_are_no_phases():
    plan = plan_of("""
        log() { echo "$(date) $1"; }
        export A=1; mkdir -p x; cd x; source "$HOME/.cargo/env"; [ -d x ]; wait $PID; rm -rf y; mv a b
        log hello
        set -e; shopt -s nullglob; printf '%s' x | grep x | tee y
    """)
    assert plan.steps == ()
    assert plan.drift == ("no phase was found: nothing that this script runs would be followed",)


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("python -m scripts.dream", "scripts.dream is not a known module"),
        ("frobnicate --all", "`frobnicate` is not a known command"),
        ("$CMD --all", "computed"),
        ('"${CMD[@]}"', "computed"),
        ("eval $x", "eval"),
        ("source lib.sh", "lib.sh is sourced"),
        ("source .venv/bin/activate", "it activates .venv, which nothing before makes"),
        ("exec torchrun -m scripts.base_train", "escapes the tracer"),
        ("command torchrun -m scripts.base_train", "escapes the tracer"),
        ("python - <<END\nprint(1)\nEND", "reads a script from the lines below"),
    ],
)
def test_what_is_not_recognised_is_said_with_its_line(script, says):
    drift = read_plan(f"true\n{script}\n".encode()).drift
    assert drift and drift[0].startswith("line 2: ") and says in drift[0], drift


def test_nothing_inside_comments_quotes_or_heredocs_is_a_phase():
    plan = plan_of("""
        # python -m scripts.base_train
        echo "python -m scripts.base_train" 'torchrun -m scripts.x'
        cat > file <<'END'
        python -m scripts.base_train
        $(python -m scripts.base_eval)
        END
        cat <<END
        $(python -m scripts.tok_eval)
        END
    """)
    assert names(plan) == ["tok_eval"]


def test_sections_are_the_scripts_own_headings():
    plan = plan_of("""\
        #!/bin/bash
        # A script.

        # all the setup stuff
        uv venv
        # -----------------------------------------------------------------------------
        # Tokenizer

        # train it
        python -m scripts.tok_train
        # =============================================================================
        # Main Loop
        # =============================================================================

        # more words
        python -m scripts.base_train
    """)
    assert [step.section for step in plan.steps] == ["all the setup stuff", "Tokenizer", "Main Loop"]
    assert plan_of("# a\n# b\n\nuv venv\n").steps[0].section == "a"
    assert plan_of("uv venv\n").steps[0].section == ""


def test_a_multi_line_command_is_one_step_at_its_first_line():
    plan = plan_of("""\
        true
        torchrun --standalone \\
            --nproc_per_node=8 \\
            -m scripts.base_train -- \\
            --depth=20
    """)
    (step,) = plan.steps
    assert (step.line, step.module) == (2, "scripts.base_train")
    assert step.command == "torchrun --standalone --nproc_per_node=8 -m scripts.base_train -- --depth=20"
    assert step.words[-2:] == ("--", "--depth=20")


def test_a_missing_last_newline_is_read_as_bash_reads_it():
    assert names(read_plan(b"uv venv\npython -m scripts.tok_train")) == ["uv-venv", "tok_train"]


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (b"true\nif true; then\n  uv venv\n", "line 4"),
        (b"true\ndone\n", "line 2"),
        (b"true\nuv venv\r\n", "line 2 of the script ends in CR LF"),
        (b"\x7fELF\0\0", "NUL"),
        (b'echo "open\n', "line "),
    ],
)
def test_a_script_that_bash_refuses_is_one_clear_error(script, says):
    with pytest.raises(RequestError, match=says) as caught:
        read_plan(script)
    assert "\n" not in str(caught.value)


def test_find_tells_phases_of_one_line_apart():
    plan = read_plan(
        b"python -m nanochat.dataset -n 8 & python -m nanochat.dataset -n 9; uv sync; $PY -m scripts.tok_eval\n"
    )
    first, second, sync, computed = plan.steps
    assert [step.index for step in plan.steps] == [0, 1, 2, 3]
    assert plan.find(1, "python", ["python", "-m", "nanochat.dataset", "-n", "8"]) == first
    assert plan.find(1, "python", ["python", "-m", "nanochat.dataset", "-n", "9"]) == second
    assert plan.find(1, "uv", ["uv", "sync"]) == sync
    assert plan.find(1, "python3", ["python3", "-m", "scripts.tok_eval"]) == computed
    assert plan.find(2, "python", ["python", "-m", "nanochat.dataset", "-n", "8"]) is None
    assert "$PY" not in plan.launchers()


@pytest.mark.parametrize(
    ("argv", "module"),
    [
        ("python -m scripts.x -m 16", "scripts.x"),
        ("torchrun --nproc_per_node 8 -m scripts.x -- -m 16", "scripts.x"),
        ("uv run torchrun --standalone -m scripts.x", "scripts.x"),
        ("env A=1 /opt/bin/python3.11 -u -m scripts.x", "scripts.x"),
        ("python -m torch.distributed.run --standalone -m scripts.x", "scripts.x"),
        ("python train.py -m 16", None),
        ("python -c x -m y", None),
        ("curl -m 10 https://host", None),
    ],
)
def test_the_module_is_found_behind_prefixes(argv, module):
    assert module_of(argv.split()) == module


LINES = """\
#!/bin/bash
python -m scripts.a
A=1 torchrun \\
    -m scripts.b -- \\
    --depth=1
python \\
    -m scripts.c
A=1 \\
    python \\
    -m scripts.d
time python "a
b" -m scripts.e
A="x
y" python -m scripts.f
> /dev/null python \\
    -m scripts.g
uv venv && uv sync ||
    uv lock
if [ -z "$NO" ]; then
    python -m scripts.h \\
        --x
fi
one() {

    python -m scripts.i

}
one
for i in 1 2; do
    torchrun -m scripts.j \\
        --i=$i \\
        2>&1 | cat
    uv sync |
        cat
done
x=$(python -c '
print(1)
')
y="$(
    python -m scripts.k
)"
export Z=$(
    python -m scripts.l 1
)
[ "$(
    python -m scripts.m
)" ]
echo $(

    python -m scripts.n
    python -m scripts.o 'a
b'
)
echo `
uv a`
w=$(

python 'a
b' -m scripts.s

)
python -m scripts.t
{
    uv pip; uv run
} > /dev/null
( cd /
  uv tree )
python /dev/stdin <<END
print(1)
END
cat <<END
$(
python -m scripts.p
)
END
python -m scripts.q & wait
python \\
    &
case x in
    x) uv cache ;;
esac
while ! uv python; do :; done
python -m scripts.r"""


def test_every_line_is_bashs_own_lineno(tmp_path):
    """Real bash runs the script with its commands as functions that report the line that a DEBUG trap last saw."""
    script, log, trace = tmp_path / "lines.sh", tmp_path / "log", tmp_path / "trace.bash"
    script.write_text(LINES)
    report = r"""() { { printf '%s\x1f' "$seen" "$FUNCNAME" "$@"; printf '\0'; } >> "$LOG"; }"""
    trace.write_text(f"""python{report}\ntorchrun{report}\nuv{report}
set -o functrace
trap '[[ ${{FUNCNAME-}} == @(python|torchrun|uv) ]] || seen=$LINENO' DEBUG
""")
    environ = os.environ | {"BASH_ENV": str(trace), "LOG": str(log)}
    subprocess.run(["bash", script], env=environ, check=True, timeout=20, capture_output=True)
    plan = read_plan(LINES.encode())
    ran = [entry.split("\x1f")[:-1] for entry in log.read_text().split("\0")[:-1]]
    found = [(int(line), argv, plan.find(int(line), argv[0], argv)) for line, *argv in ran]
    for line, argv, step in found:
        assert step, (line, argv)
        assert (step.module, len(step.words)) == (module_of(argv), len(argv))
        assert step.launcher != "uv" or step.words[1] == argv[1]
        assert step.line == line or step.piped, (line, argv, step)
    assert {step.name for step in plan.steps} - {step.name for *_, step in found if step} == {"uv-lock"}


def homerun_plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "homerun", "plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_command_shows_phases_drift_and_adaptations_without_running_anything(tmp_path):
    script = tmp_path / "mine.sh"
    script.write_text(f"touch {tmp_path}/ran\nfrobnicate\ntorchrun --nproc_per_node=8 -m homerun.trainer.base_train\n")
    done = homerun_plan("--script", str(script), "--json", "--nproc", "0", "--phase-args", "base_train=--depth=2")
    report = json.loads(done.stdout)
    assert (done.returncode, [phase["name"] for phase in report["phases"]]) == (0, ["frobnicate", "base_train"])
    assert report["phases"][1]["argv"] == ["python", "-m", "homerun.trainer.base_train", "--depth=2"]
    assert "line 2" in report["drift"][0]
    shown = homerun_plan("--script", str(script))
    assert shown.returncode == 0 and "frobnicate" in shown.stdout and "warning: line 2" in shown.stdout
    assert not (tmp_path / "ran").exists()
    wrong = homerun_plan("--script", str(script), "--skip", "mid_train")
    assert (wrong.returncode, wrong.stderr.count("\n"), "base_train" in wrong.stderr) == (2, 1, True)
