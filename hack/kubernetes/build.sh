#!/usr/bin/env bash
# usage: build.sh           build Kubernetes (one binary, see main.go) unless it is cached
#        build.sh --where   print only where it is, or would be
# Prints the directory, for KUBEBUILDER_ASSETS. Its name holds a hash of all
# that goes into the binary, so a change of any of it builds anew and several
# checkouts share one build.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here"

# Charts and clients read the version that the server reports; without the
# stamp it is not a version at all.
version=$(sed -n 's/^\tk8s.io\/kubernetes v//p' go.mod)
IFS=. read -r major minor _ <<<"$version"
ldflags="-s -w"
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
	ldflags+=" -X $package.gitVersion=v$version -X $package.gitMajor=$major"
	ldflags+=" -X $package.gitMinor=$minor -X $package.gitTreeState=clean"
done
flags=(-trimpath -buildvcs=false -ldflags "$ldflags")

key=$({ cat go.mod go.sum main.go; echo "${flags[@]}"; go env GOVERSION GOOS GOARCH; } | sha256sum | cut -c1-16)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/nix-builder-operator
assets=$cache/kubernetes-$key

if [[ ${1:-} == --where ]]; then
	echo "$assets"
	exit
fi

if [[ ! -x $assets/kube-apiserver ]]; then
	mkdir -p "$cache"
	# Only one build at a time; whoever waited finds the result.
	exec {lock}>"$cache/kubernetes.lock"
	"$here/../progress.sh" "waiting for another build of Kubernetes" flock "$lock"
	if [[ ! -x $assets/kube-apiserver ]]; then
		work=$(mktemp -d "$assets.XXXXXX")
		trap 'rm -rf "$work"' EXIT
		CGO_ENABLED=0 GOFLAGS='' "$here/../progress.sh" \
			"building Kubernetes $version (about 8 minutes on two cores the first time)" \
			go build "${flags[@]}" -o "$work/kubernetes" . >&2
		for name in $(sed -n 's/^\tcase "\(.*\)":$/\1/p' main.go); do
			ln -s kubernetes "$work/$name"
		done
		chmod 755 "$work"
		mv -T "$work" "$assets"
	fi
fi
echo "$assets"
