#!/usr/bin/env bash
# Build the job image, test it, push it, and say what to type next.
#
#   ./build_and_push.sh USER GIST_URL [TAG] [--dry-run]
#
#   USER      your account at the registry (REGISTRY, default docker.io): the image is USER/nanochat-training
#   GIST_URL  the wrapper's gist, as `homerun publish` prints it; checked here as a box will check it
#   TAG       default: the commit of this checkout
#
# BUILD_ARGS='--build-arg EXTRAS=serve,train' and the like are passed to docker build. --dry-run does all but the push.
set -Eeuo pipefail
cd "$(dirname "$0")"

REGISTRY=${REGISTRY:-docker.io}
DRY_RUN=false

die() {
	echo "error: $1" >&2
	exit "${2:-2}"
}

step() { echo "== $*" >&2; }

usage() {
	sed -n '2,11s/^# \{0,1\}//p' "$0"
	exit "$1"
}

parse() {
	local words=()
	for word in "$@"; do
		case $word in
		--dry-run) DRY_RUN=true ;;
		-h | --help) usage 0 ;;
		-*) die "$word is no option of build_and_push.sh. Try --help" ;;
		*) words+=("$word") ;;
		esac
	done
	[ "${#words[@]}" -ge 2 ] && [ "${#words[@]}" -le 3 ] || usage 2 >&2
	[[ ${words[0]} =~ ^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$ ]] || die "USER is '${words[0]}', which is no registry account. Give its lower-case name"
	GIST=${words[1]}
	REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)
	TAG=${words[2]:-${REVISION:0:12}}
	[[ $TAG =~ ^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$ ]] || die "TAG is '$TAG', which is no image tag. Give letters, digits, '.', '_' and '-'"
	IMAGE=$REGISTRY/${words[0]}/nanochat-training:$TAG
}

# Whether docker has credentials for the registry. Docker Hub is listed under its old address.
logged_in() {
	local config=${DOCKER_CONFIG:-$HOME/.docker}/config.json host=$REGISTRY
	[ "$host" = docker.io ] && host=index.docker.io
	[ -s "$config" ] && python3 - "$config" "$host" <<-'PYTHON'
		import json, sys
		config = json.load(open(sys.argv[1]))
		known = [*config.get("auths", {}), *config.get("credHelpers", {})]
		sys.exit(not any(sys.argv[2] in name for name in known))
	PYTHON
}

check() {
	step "checking docker, the registry login and the gist"
	command -v docker >/dev/null || die "docker is not installed. See https://docs.docker.com/engine/install/" 3
	docker version >/dev/null 2>&1 || die "the docker daemon does not answer. Start it, or set DOCKER_HOST" 3
	"$DRY_RUN" || logged_in || die "not logged in to $REGISTRY. Type: docker login $REGISTRY" 3
	SCRIPT_URL=$GIST python3 entrypoint/fetch.py --check >&2 || exit $?
}

build() {
	step "building $IMAGE"
	# shellcheck disable=SC2086 # BUILD_ARGS are several words
	DOCKER_BUILDKIT=1 docker build -f Dockerfile.training -t "$IMAGE" ${BUILD_ARGS:-} \
		--build-arg "IMAGE=$IMAGE" --build-arg "REVISION=$REVISION" --build-arg "CREATED=$(date -u +%Y-%m-%dT%H:%M:%SZ)" . >&2
}

# The image tests itself before anyone gets it: the tools are there, a user without a name can start it, and it holds what
# this checkout has.
self_check() {
	step "testing $IMAGE"
	docker run --rm --read-only --tmpfs /tmp --tmpfs /data:uid=4242,mode=0775 --user 4242 "$IMAGE" \
		shell -c 'homerun --version && git --version && gcc --version >/dev/null && uv --version && aws --version && wandb --version' >&2 ||
		die "the image does not pass its self-check" 1
}

push() {
	if "$DRY_RUN"; then
		step "--dry-run: not pushed"
		return
	fi
	step "pushing $IMAGE"
	docker push "$IMAGE" >&2 || die "$IMAGE was not pushed. Check that the account may write there: docker login $REGISTRY" 3
	docker image inspect --format '{{join .RepoDigests "\n"}}' "$IMAGE" >&2
}

next() {
	echo "export IMAGE=${IMAGE#docker.io/} SCRIPT_URL=$GIST"
	step "next: type the line above, then: homerun deploy --dry-run"
}

main() {
	parse "$@"
	check
	build
	self_check
	push
	next
}

[[ ${BASH_SOURCE[0]} != "$0" ]] || main "$@"
