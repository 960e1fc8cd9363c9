#!/usr/bin/env bash
# usage: verify.sh DIRECTORY…
# Generates everything anew and fails, with the difference, if that changed a
# file of these directories. Works on uncommitted changes too, and leaves the
# generated files current.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

before=$(mktemp -d)
trap 'rm -rf "$before"' EXIT
cp -a --parents "$@" "$before"
hack/progress.sh 'generating files' make generated
status=0
for directory in "$@"; do
	diff -ru "$before/$directory" "$directory" || status=1
done
if ((status)); then
	echo 'generated files were not current: commit what `make generated` changed' >&2
fi
exit "$status"
