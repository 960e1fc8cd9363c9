#!/usr/bin/env bash
# usage: progress.sh LABEL COMMAND [ARG…]
# Runs COMMAND and reports on stderr that it is still at work: after two
# seconds, then every fifteen. Exits with COMMAND's status.
set -uo pipefail

label=$1
shift

tick() {
	# A read that times out is a sleep without a child process, so that killing
	# the ticker leaves nothing behind that keeps stderr open.
	local nothing
	exec {nothing}<> <(:)
	read -r -t 2 -u "$nothing"
	while :; do
		printf '… %s (%d:%02d)\n' "$label" $((SECONDS / 60)) $((SECONDS % 60)) >&2
		read -r -t 15 -u "$nothing"
	done
}

tick >/dev/null &
ticker=$!
trap 'kill "$ticker" 2>/dev/null' EXIT
"$@"
