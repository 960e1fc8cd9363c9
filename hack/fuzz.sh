#!/usr/bin/env bash
# usage: fuzz.sh [TIME]   run every fuzz target of the project for TIME (10s)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CGO_ENABLED=0 GOFLAGS=-buildvcs=false

count=0
while IFS=: read -r file target; do
	target=${target#func }
	target=${target%%(*}
	printf '== %s %s\n' "$(dirname "$file")" "$target"
	go test -run '^$' -fuzz "^$target\$" -fuzztime "${1:-10s}" "./$(dirname "$file")"
	count=$((count + 1))
done < <(grep -roE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*\(' api cmd controllers internal | sort)
echo "$count fuzz targets ran"
