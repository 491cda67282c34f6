#!/usr/bin/env bash
# The image's entrypoint: make the folders usable for whatever user this is, then become what was asked for.
#
#   docker run IMAGE                      train: bind the port, fetch the wrapper (SCRIPT_URL), run it
#   docker run IMAGE preflight            any `homerun` command: preflight, serve RUN, pull RUN DIR, verify RUN ...
#   docker run -it IMAGE shell            a shell in the image
#   docker run IMAGE nvidia-smi           any other program
set -Eeuo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# usage: die CODE MESSAGE
#    ie: die 2 'HOME is not writable. Add -v homerun:/data'
die() {
	echo "error: $2" >&2
	exit "$1"
}

# usage: writable FOLDER
# Whether this user can make files in FOLDER, which is made if need be.
writable() {
	mkdir -p "$1" 2>/dev/null && [ -w "$1" ]
}

# usage: writable_or NAME FALLBACK
#    ie: writable_or HOMERUN_DIR /tmp/homerun
# Moves the folder that variable NAME names to FALLBACK if this user cannot write to it, and says what that means.
writable_or() {
	local name=$1 fallback=$2
	writable "${!name}" && return
	writable "$fallback" || die 2 "$name is ${!name}, which uid $(id -u) cannot write to, nor to $fallback. Add --tmpfs /tmp or -v homerun:/data"
	echo "homerun: $name is ${!name}, which uid $(id -u) cannot write to; using $fallback, which is lost with the box" >&2
	export "$name=$fallback"
}

# A user that /etc/passwd does not know (docker run --user 4242) has no name, and PyTorch's compiler cache asks for one.
name_user() {
	id -un >/dev/null 2>&1 || export USER="${USER:-homerun}" LOGNAME="${LOGNAME:-homerun}"
}

# A folder bucket inside a container dies with it, and a memory dump of a 100 GB process helps nobody.
prepare() {
	ulimit -c 0
	: "${HOME:=/data/home}" "${HOMERUN_DIR:=$HOME/.homerun}"
	export HOME HOMERUN_DIR
	writable_or HOME /tmp/homerun/home
	writable_or HOMERUN_DIR "$HOME/.homerun"
	name_user
}

# usage: is_homerun_command NAME
is_homerun_command() {
	case $1 in *[!a-z-]* | '') return 1 ;; esac
	homerun "$1" --help >/dev/null 2>&1
}

_is_sourced() {
	[ "${#FUNCNAME[@]}" -ge 2 ] && [ "${FUNCNAME[0]}" = _is_sourced ] && [ "${FUNCNAME[1]}" = source ]
}

_main() {
	case ${1:-} in
	-h | --help | --version) set -- homerun "$@" ;;
	'' | -*) set -- train "$@" ;;
	esac
	prepare
	case $1 in
	train)
		shift
		exec python3 "$HERE/box.py" "$@"
		;;
	shell)
		shift
		exec bash "$@"
		;;
	*)
		if is_homerun_command "$1"; then exec homerun "$@"; fi
		command -v "$1" >/dev/null || die 2 "'$1' is neither a homerun command nor a program. Try: docker run IMAGE --help"
		exec "$@"
		;;
	esac
}

_is_sourced || _main "$@"
