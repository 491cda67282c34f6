#!/usr/bin/env bash
# Fill the caches with what one commit of upstream would fetch on the clock. Used while the image is built, if asked to.
#
#   prewarm.sh URL REF [KERNEL...]     KERNEL: a Hugging Face repository of compiled kernels, as upstream's code names it
#
# Only caches are filled (uv's, Hugging Face's), never upstream's own folders: a run of another commit works all the same,
# and fetches what differs. Upstream swallows a kernel that cannot be had, and trains slowly; here that is an error.
set -Eeuo pipefail

die() {
	echo "error: $1" >&2
	exit 2
}

main() {
	[ $# -ge 2 ] || die "usage: prewarm.sh URL REF [KERNEL...]"
	local url=$1 ref=$2 kernel
	shift 2
	SOURCE=$(mktemp -d)
	trap 'rm -rf "$SOURCE"' EXIT
	git clone -q "$url" "$SOURCE/upstream"
	cd "$SOURCE/upstream"
	git checkout -q "$ref" || die "PREWARM_REF is '$ref', which $url does not have"
	if grep -q '^gpu = \[' pyproject.toml; then uv sync -q --extra gpu; else uv sync -q; fi
	for kernel in "$@"; do
		# no GPU here: it may not load, but it must have come
		.venv/bin/python -c "from kernels import get_kernel; get_kernel('$kernel')" || true
		[ -n "$(find "${HF_HOME:-$HOME/.cache/huggingface}" -path "*${kernel/\//--}*" -name '*.so' -print -quit)" ] ||
			die "the kernel '$kernel' did not come from Hugging Face"
	done
}

main "$@"
