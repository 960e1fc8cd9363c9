#!/usr/bin/env bash
# Installs the Debian packages that the tests and the demo need and that are
# missing. Without root or apt it names them and fails.
set -euo pipefail

if ! command -v go >/dev/null; then
	echo 'missing: go (1.26 or later, see https://go.dev/dl)' >&2
	exit 1
fi

# program=package; gcc, libc6-dev and pkg-config are for the race detector and
# for runc.
needed=(
	gcc=gcc
	git=git
	gpgv=gpgv
	ip=iproute2
	iptables=iptables
	make=make
	mmdebstrap=mmdebstrap
	mount=mount
	nsenter=util-linux
	pkg-config=pkg-config
	ssh=openssh-client
	ssh-keygen=openssh-client
)
packages=()
PATH=$PATH:/usr/sbin:/sbin
for entry in "${needed[@]}"; do
	if ! command -v "${entry%%=*}" >/dev/null; then
		packages+=("${entry#*=}")
	fi
done
[[ -e /usr/include/stdlib.h ]] || packages+=(libc6-dev)
[[ -e /usr/include/seccomp.h ]] || packages+=(libseccomp-dev)
[[ -e /usr/share/keyrings/debian-archive-keyring.gpg ]] || packages+=(debian-archive-keyring)
[[ -e /etc/ssl/certs/ca-certificates.crt ]] || packages+=(ca-certificates)
if ((${#packages[@]} == 0)); then
	exit
fi

command="apt-get install -y --no-install-recommends ${packages[*]}"
if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
	echo "missing: ${packages[*]} (as root: $command)" >&2
	exit 1
fi
install() {
	# No package may start a service on this machine: runlevel 1 forbids it.
	export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
	apt-get update -q && $command
}
export -f install
export command
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! "$(dirname "${BASH_SOURCE[0]}")/progress.sh" "installing ${packages[*]}" bash -c install >"$log" 2>&1; then
	cat "$log" >&2
	exit 1
fi
