"""The tracer sees every phase of an unmodified script, and the script sees nothing of the tracer."""

import hashlib
import sys
import tempfile
from pathlib import Path

import pytest

from homerun.upstream.runner import Decision
from tests.running import PATH, plain_bash, prepare, run_script

GNARLY = r"""
echo one two; echo "last: $_"
false | true | cat /dev/null; echo "pipe: ${PIPESTATUS[*]}"
IFS=:; list="a:b:c"; for x in $list; do echo "<$x>"; done; unset IFS
f() { local - x=1; set -u; echo "f $x $# $LINENO ${FUNCNAME[0]}"; return 0; }
f a b
g() ( echo "sub $BASH_SUBSHELL"; exit 4 )
g || echo "g: $?"
if [ -d nowhere ]; then echo yes; else echo "no: $?"; fi
while read -r line; do echo "read $line"; done <<END
x y
 z\t
END
trap 'echo "exit trap: $?"' EXIT
declare -A map=([k]="v w"); echo "${map[k]}" "${!map[@]}"
set -f; echo *; set +f
echo "$0 $# $- $SHLVL $BASH_SUBSHELL" | sed 's/[ET]//g'
x=$(printf 'a\nb\n\n'); echo "[$x]"
diff <(echo 1) <(echo 2) | tail -1
(exit 3) || echo "sub: $?"
cat <<< "here $x"
((0)) || echo "arithmetic: $?"
readonly R=1; R=2 2>/dev/null || true
echo "${BASH_COMMAND@Q} $LINENO" >/dev/null
printf '%s\n' "$(type cat)" "$(command -v sh)"
[[ abc =~ b ]] && echo "match ${BASH_REMATCH[0]}"
select_nothing=; echo "${select_nothing:-default}"
( trap 'echo term' TERM; kill -TERM $BASHPID; echo after )
echo err >&2
"""


def test_a_script_does_the_same_as_under_bash_alone(tmp_path):
    ran = run_script(tmp_path, GNARLY)
    assert ran.runner.script_log.read_bytes() == plain_bash(tmp_path, GNARLY).stdout


@pytest.mark.parametrize("options", ["set -eu", "set -euo pipefail", "set -o noclobber", "set -f", "shopt -s nullglob"])
def test_the_shells_options_are_the_scripts_own(tmp_path, options):
    script = (
        f"{options}\nsh -c 'exit 0'\nx=$(sh -c 'echo in')\necho $x {{1..3}} *.nothing\nsh -c : | cat\nfalse || echo y\n"
    )
    ran = run_script(tmp_path, script)
    assert ran.outcome.ok, ran.outcome
    assert ran.said.encode() == plain_bash(tmp_path, script).stdout


def test_xtrace_shows_the_script_and_hardly_more(tmp_path):
    said = run_script(tmp_path, "set -x\necho hi\nx=1\nsh -c 'exit 0'\n").said
    assert "+ echo hi\nhi\n+ x=1\n+ sh -c 'exit 0'\n" in said
    assert "__homerun_debug" not in said


ARGUMENTS = [
    "'a b'  c",
    "'it'\"'\"'s' '\"' '\\' '$HOME' '`id`'",
    "$'two\\nlines\\n' ''",
    "'*' '?' '[a-z]' '~' '{a,b}'",
    "$'\\xff\\xfe' $'\\xe2\\x82'",
    "'--' '-c' '-x=1'",
    "é '日本'",
    "{1..50}",
]


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_every_argument_reaches_the_phase_byte_for_byte(tmp_path, arguments):
    script = f'sh -c \'printf "%s\\0" "$@"\' sh {arguments}\n'
    ran = run_script(tmp_path, script)
    assert ran.outcome.ok
    assert ran.output(ran.names()[0]) == plain_bash(tmp_path, script).stdout


def test_two_megabytes_of_arguments_arrive(tmp_path):
    script = 'words=$(seq 100000)\nsh -c \'echo $#; printf "%s" "$*" | wc -c\' sh $words\n'
    ran = run_script(tmp_path, script)
    assert ran.output(ran.names()[0]).split() == plain_bash(tmp_path, script).stdout.split()


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "de_DE.ISO-8859-1"])
def test_a_phase_finds_the_environment_that_bash_alone_would_give_it(tmp_path, locale):
    script = "export A=$'x\\ny'\nB=2 sh -c 'tr \"\\0\" \"\\n\" < /proc/self/environ'\n"
    ran = run_script(tmp_path, script, env={"LANG": locale})

    def lines(data: bytes) -> set[bytes]:
        return {line for line in data.split(b"\n") if not line.startswith((b"_=", b"PWD=", b"OLDPWD="))}

    assert lines(ran.output(ran.names()[0])) == lines(plain_bash(tmp_path, script, {"LANG": locale}).stdout)


@pytest.mark.parametrize("end", ["", " | cat"])
def test_a_phases_signals_are_set_as_under_bash_alone(tmp_path, end):
    script = f"sh -c 'grep -E \"Sig(Ign|Blk)\" /proc/self/status'{end}\n"
    ran = run_script(tmp_path, script)
    assert ran.output(ran.names()[0]) or ran.said
    assert (ran.output(ran.names()[0]) or ran.said.encode()) == plain_bash(tmp_path, script).stdout


def test_lines_are_those_of_the_script(tmp_path):
    script = """\
sh -c 'echo 1'
sh -c \\
  'echo 2' \\
  two
f() {
  sh -c 'echo 6'
}
f
for i in a b; do
  sh -c "echo $i"
done
sh -c 'echo 12' | cat; sh -c 'echo 12b'
x=$(sh -c 'echo 13')
cat <<END
sh -c none
END
if sh -c 'exit 1'; then :; elif
  sh -c 'exit 0'; then
  sh -c 'echo 19'
fi
"""
    ran = run_script(tmp_path, script)
    assert ran.outcome.ok, ran.outcome
    assert [phase.line for phase in ran.runner.phases] == [1, 2, 6, 10, 10, 12, 12, 13, 17, 18, 19]
    assert [phase.occurrence for phase in ran.runner.phases[3:5]] == [1, 2]
    assert [phase.index for phase in ran.runner.phases[5:7]] == [0, 1]
    assert ran.names()[4] == ran.names()[3] + ".2"


def test_a_sourced_files_phases_are_seen_at_the_line_that_sources_it(tmp_path):
    ran = prepare(tmp_path, "sh -c 'echo first'\nsource ./more.sh\nsh -c 'echo last'\n")
    (tmp_path / "src" / "more.sh").write_text("\n\n\n\n\nfalse\nsh -c 'echo inside'\n:\n")
    ran.run()
    assert ran.outcome.ok, ran.outcome
    assert [phase.line for phase in ran.runner.phases] == [1, 2, 3]
    assert ran.runner.phases[1].step is None


def test_command_v_tells_whether_there_is_a_real_one(tmp_path):
    script = """\
command -v uvv &> /dev/null || printf 'echo "#!/bin/sh\necho uvv \\$@" > bin/uvv; chmod +x bin/uvv' | sh
command -v uvv
[ -d .venv ] || uvv venv
[ "$(type -P uvv)" ] && echo there
uvv sync --extra gpu
"""
    ran = prepare(tmp_path, script, env={"PATH": f"bin:{PATH}"})
    (tmp_path / "src" / "bin").mkdir()
    ran.run()
    assert ran.outcome.ok, ran.outcome
    assert ran.names() == ["sh", "uvv", "uvv-2"]
    assert ran.output("uvv-2") == b"uvv sync --extra gpu\n"
    assert ran.said == "bin/uvv\nthere\n"
    again = run_script(tmp_path, script, env={"PATH": f"bin:{PATH}"})
    assert again.names() == ["uvv", "uvv-2"], "it is there now: no installer"


def test_a_command_that_is_not_there_is_a_phase_that_failed(tmp_path):
    ran = run_script(tmp_path, "uvv sync\necho never\n")
    assert ran.outcome.why == "phase" and "command not found" in ran.outcome.text
    assert ran.runner.phases[0].status == 127 and "never" not in ran.said


def test_functions_survive_activation_and_run_the_venvs_python(tmp_path):
    ran = prepare(tmp_path, "python -c 'print(1)'\nsource .venv/bin/activate\npython -c 'print(2)'\n")
    bin = tmp_path / "src" / ".venv" / "bin"
    bin.mkdir(parents=True)
    (bin / "activate").write_text(f"PATH={bin}:$PATH\nhash -r\nunset NOTHING\n")
    (bin / "python").write_text("#!/bin/sh\necho the venv\n")
    (bin / "python").chmod(0o755)
    ran.run()
    assert ran.output("python-c") == b"1\n" and ran.output("python-c-2") == b"the venv\n"


def test_a_command_with_a_path_is_seen_too(tmp_path):
    ran = run_script(tmp_path, f"{sys.executable} -c 'print(1)'\n")
    assert [phase.verdict for phase in ran.runner.phases] == ["ok"]


def test_standard_input_reaches_the_phase(tmp_path):
    ran = run_script(
        tmp_path, "printf 'echo from the pipe' | sh\nsh -c 'cat' <<< here\nsh -c 'cat' < script.sh | wc -l\n"
    )
    assert ran.outcome.ok
    outputs = [phase.log.read_bytes() for phase in ran.runner.phases]
    assert b"from the pipe\n" in outputs[0] + ran.said.encode() and outputs[1] == b"here\n" and "3" in ran.said


def test_redirected_output_goes_where_the_script_sends_it(tmp_path):
    script = "sh -c 'echo out; echo err >&2' > file\nsh -c 'echo out; echo err >&2' 2>&1 | tee copy\n"
    script += "x=$(sh -c 'echo kept')\n"
    script += "sh -c 'echo lost' >&-  || true\nexec > all 2>&1\nsh -c 'echo late'\n"
    ran = run_script(tmp_path, script)
    src = tmp_path / "src"
    assert (src / "file").read_text() == "out\n" and (src / "copy").read_text() == "out\nerr\n"
    assert ran.runner.phases[0].log.read_text() == "err\n"
    assert (src / "all").read_text() == "late\n"


def test_the_scripts_own_kill_reaches_a_background_phase(tmp_path):
    script = "python -c 'import time; time.sleep(600)' &\nPID=$!\nsleep 0.3\nkill $PID\nwait $PID\necho went on\n"
    ran = run_script(tmp_path, script)
    assert ran.outcome.ok, ran.outcome
    assert ran.verdicts() == {"python-c": "tolerated"} and ran.runner.phases[0].status == -15
    assert "went on" in ran.said


def test_a_background_status_arrives_at_wait(tmp_path):
    ran = run_script(tmp_path, "sh -c 'sleep 0.2; exit 7' & P=$!\nwait $P || echo \"status $?\"\n")
    assert not ran.outcome.ok and ran.runner.phases[0].status == 7, "background phases must not fail unseen"
    ok = run_script(tmp_path / "ok", "sh -c 'sleep 0.2' & P=$!\nwait $P; echo \"status $?\"\n")
    assert ok.outcome.ok and "status 0" in ok.said


def test_skipped_phases_are_zero_to_the_script_wherever_they_stand(tmp_path):
    script = "sh -c 'exit 9' &\nP=$!\nwait $P; echo \"a $?\"\nx=$(sh -c 'echo no'); echo \"b [$x] $?\"\n"
    script += "sh -c 'echo no' | cat; sh -c 'exit 9' && echo c\nsh -c 'exit 9'; echo \"d $?\"\n"
    ran = run_script(tmp_path, script, decide=lambda phase: Decision(None, "not today"))
    assert ran.outcome.ok and ran.said == "a 0\nb [] 0\nc\nd 0\n"
    assert ran.runner.phases == [] and len(ran.of("phase.skip")) == 5
    assert ran.of("phase.skip")[0]["reason"] == "not today"


def test_what_the_job_decides_is_what_runs(tmp_path):
    def decide(phase):
        return Decision([*phase.original, "more", "last one"], env={"EXTRA": "x=y"})

    ran = run_script(tmp_path, "sh -c 'echo \"$@\" $EXTRA' sh first\nsh -c 'echo ${EXTRA-}'\n", decide=decide)
    assert ran.output(ran.names()[0]) == b"first more last one x=y\n"
    begin = ran.of("phase.begin")[0]
    assert begin["argv"][-2:] == ["more", "last one"] and begin["original"][-1] == "first"


@pytest.mark.parametrize("text", ["echo a\nsh -c 'echo b'", "\n\n", "sh -c 'echo a'\n# end"])
def test_a_script_without_a_last_newline_runs_and_stays_as_it_was(tmp_path, text):
    before = hashlib.sha256(text.encode()).hexdigest()
    ran = run_script(tmp_path, text)
    assert ran.outcome.ok
    assert hashlib.sha256((tmp_path / "src" / "script.sh").read_bytes()).hexdigest() == before


def test_child_shells_are_not_traced(tmp_path):
    ran = prepare(tmp_path, "bash ./child.sh\n")
    (tmp_path / "src" / "child.sh").write_text("sh -c 'exit 3'\necho \"${BASH_ENV-none} $(type -t sh)\"\n")
    ran.run()
    assert ran.outcome.ok and ran.names() == ["bash-child"]
    assert ran.output("bash-child") == b"none file\n"


def test_nothing_of_ours_is_left_in_tmp(tmp_path, monkeypatch):
    made, mkdtemp = [], tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **how: made.append(mkdtemp(**how)) or made[-1])
    run_script(tmp_path, "sh -c :\n")
    assert made and not any(Path(folder).exists() for folder in made)
