# shellcheck shell=bash disable=SC1007,SC2016,SC2154
# Watches the commands of one bash script from the inside, without a change to the script.
#
# bash sources this ahead of the script (BASH_ENV). The few lines before it, written by tracer.py, set
#   __homerun_script     the script's name as in $0
#   __homerun_shim       how to start shim.py with its socket
#   __homerun_launchers  the external commands that are phases: each becomes a function that runs the shim
# None of them is exported, so nothing of ours is in the environment of a phase.

unset BASH_ENV # else every bash below would come here
[[ $0 == "$__homerun_script" ]] || return 0
__homerun_here=${BASH_SOURCE[0]}
__homerun_line=0 __homerun_pid=$BASHPID __homerun_hidden= __homerun_command= __homerun_kind=command

# Before each simple command: where are we? $1 LINENO, $2 the command, $3 the script's $_, last so that it survives.
__homerun_debug() {
  local -
  set +eux
  [[ ${BASH_SOURCE[1]} != "$__homerun_here" ]] || return 0
  if [[ $BASHPID != "$__homerun_pid" ]]; then # forked by the last command: for a $( ), whose failure bash ignores?
    [[ $__homerun_command != *'$('* && $__homerun_command != *'`'* ]] || __homerun_kind=substitution
    __homerun_pid=$BASHPID
  fi
  __homerun_command=$2
  [[ ${BASH_SOURCE[1]} == "$0" ]] || return 0 # a sourced file's lines are not the script's
  __homerun_line=$1
  case $2 in
    # `command -v uv` must tell whether there is a real one.
    'command -'[vV]* | 'type '* | 'hash '*)
      unset -f "${__homerun_launchers[@]}"
      __homerun_hidden=1
      ;;
    *) [[ -z $__homerun_hidden ]] || __homerun_define ;;
  esac
}

# A command failed and nobody tests its status: the job decides; where it does not answer, we never go on.
# $1 status, $2 the command.
__homerun_error() {
  local - kind=$__homerun_kind
  set +eux
  [[ ${BASH_SOURCE[1]} == "$0" ]] || return 0
  ! declare -F -- "${2%%[[:space:]]*}" || kind=function
  command "${__homerun_shim[@]}" error "$__homerun_line" "$1" "$kind" "$2" </dev/null
}

__homerun_run() {
  { local - && set +eux; } 2>/dev/null
  # Forked since the DEBUG trap fired: this process exists for this command alone (`&`, a member of a pipeline). It
  # becomes the shim, so that $! is the pid that a `kill $!` should reach. (exec takes one off SHLVL.)
  [[ $BASHPID == "$__homerun_pid" ]] || { ((SHLVL += 1)); exec "${__homerun_shim[@]}" begin "$__homerun_line" "$@"; }
  command "${__homerun_shim[@]}" begin "$__homerun_line" "$@"
}

__homerun_define() {
  local name
  for name in "${__homerun_launchers[@]}"; do
    eval "function $name { __homerun_run $name \"\$@\"; }"
  done
  __homerun_hidden=
}

__homerun_define
set -ET # the traps hold in functions and subshells too
trap '{ __homerun_debug "$LINENO" "$BASH_COMMAND" "$_"; } 2>/dev/null' DEBUG
trap '{ __homerun_error "$?" "$BASH_COMMAND"; } 2>/dev/null' ERR
