#!/usr/bin/env bash
# usage: build.sh           build containerd, runc, CNI plugins and pause unless they are cached
#        build.sh --where   print only where they are, or would be
# Prints the directory. Its name holds a hash of all that goes into the
# binaries, so a change of any of it builds anew and several checkouts share
# one build.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here"

key=$({ cat go.mod go.sum build.sh pause/main.go; go env GOVERSION GOOS GOARCH; } | sha256sum | cut -c1-16)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/nix-builder-operator
parts=$cache/node-$key

if [[ ${1:-} == --where ]]; then
	echo "$parts"
	exit
fi

# compile DIRECTORY builds all programs into it.
compile() {
	local out=$1 plugins=github.com/containernetworking/plugins/plugins
	local containerd=github.com/containerd/containerd/v2 version
	version=$(go list -m -f '{{.Version}}' "$containerd")
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -tags no_btrfs,no_devmapper,no_zfs \
		-ldflags "-s -w -X $containerd/version.Version=${version#v}" -o "$out/" \
		"$containerd/cmd/containerd" "$containerd/cmd/containerd-shim-runc-v2" "$containerd/cmd/ctr"
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w' -o "$out/" ./pause \
		"$plugins/main/bridge" "$plugins/main/loopback" "$plugins/ipam/host-local" "$plugins/meta/portmap"
	# runc enters namespaces in C, before Go starts its threads.
	CGO_ENABLED=1 go build -trimpath -buildvcs=false -tags seccomp -ldflags '-s -w' -o "$out/" github.com/opencontainers/runc
}

if [[ ! -x $parts/runc ]]; then
	mkdir -p "$cache"
	# Only one build at a time; whoever waited finds the result.
	exec {lock}>"$cache/node.lock"
	"$here/../progress.sh" "waiting for another build of containerd" flock "$lock"
	if [[ ! -x $parts/runc ]]; then
		work=$(mktemp -d "$parts.XXXXXX")
		trap 'rm -rf "$work"' EXIT
		export GOFLAGS='' work
		export -f compile
		"$here/../progress.sh" "building containerd, runc and CNI plugins (about 2 minutes on two cores the first time)" \
			bash -euo pipefail -c 'compile "$work"' >&2
		chmod 755 "$work"
		mv -T "$work" "$parts"
	fi
fi
echo "$parts"
