#!/usr/bin/env bash
# usage: tool.sh NAME [ARG…]   run a tool pinned in hack/tools (build it first if need be)
#        tool.sh --path NAME   build it if need be and print the path of its binary
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

print_path=
if [[ ${1:-} == --path ]]; then
	print_path=yes
	shift
fi
name=${1:?usage: tool.sh [--path] NAME [ARG…]}
shift

modfile=$root/hack/tools/go.mod
if [[ -f $root/hack/tools/$name/go.mod ]]; then
	modfile=$root/hack/tools/$name/go.mod
fi

# The flags are those of the project's own binaries, so that the standard
# library is compiled once. They are for the build only: a tool that itself
# calls go must see the caller's. `go tool -n` builds the tool, keeps it in
# Go's cache and prints its path.
build() {
	cd "$root" && CGO_ENABLED=0 GOFLAGS="-trimpath -buildvcs=false" go tool -n -modfile="$modfile" "$name"
}
export -f build
export root modfile name
path=$("$root/hack/progress.sh" "building $name" bash -c build)
export -n root modfile name
if [[ ! -x $path ]]; then
	# The first call may name the linker's temporary output.
	path=$(build)
fi

if [[ $print_path ]]; then
	echo "$path"
else
	exec "$path" "$@"
fi
