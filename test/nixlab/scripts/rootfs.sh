#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The nix-builder-operator Authors
#
# rootfs.sh SUITE MIRROR DIR
#
# Makes DIR the root file system of a small Debian machine with that suite's
# Nix and an SSH server. Packages are unpacked but not configured (no
# maintainer script runs, which is what makes this quick), so the few things
# that configuration would have done are done by setup below.
set -euo pipefail

# shells adds login shells to the machine, without what they depend on for
# interactive use, such as the Python and manual pages of fish.
shells() {
	local root=$1 work package
	work=$(mktemp -d)
	(
		cd "$work"
		APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get -qq -o APT::Sandbox::User=root download zsh tcsh busybox-static fish fish-common libpcre2-32-0
	)
	for package in "$work"/*.deb; do
		dpkg-deb --fsys-tarfile "$package" | tar --extract --directory "$root" --keep-directory-symlink \
			--exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' \
			--exclude='./usr/share/fish/completions/*' --exclude='./usr/share/fish/tools/*' --exclude='./usr/bin/fish_*'
	done
	rm -r "$work"
	# Busybox is what its name says: under this one, a shell.
	ln -sfn busybox "$root/bin/ash"
}

setup() {
	local root=$1 number bin
	cd "$root"

	cp usr/share/base-passwd/passwd.master etc/passwd
	cp usr/share/base-passwd/group.master etc/group
	{
		echo 'sshd:x:101:65534::/run/sshd:/usr/sbin/nologin'
		echo 'nixt:x:1001:1001:trusted by Nix:/home/nixt:/bin/bash'
		echo 'nixu:x:1002:1002:not trusted by Nix:/home/nixu:/bin/bash'
		for number in $(seq 32); do
			echo "nixbld$number:x:$((3000 + number)):3000::/var/empty:/usr/sbin/nologin"
		done
	} >>etc/passwd
	{
		echo 'nixt:x:1001:'
		echo 'nixu:x:1002:'
		echo "nixbld:x:3000:$(seq -s, -f nixbld%g 32)"
	} >>etc/group
	# "*" admits no password and, unlike "!", does not lock the account:
	# sshd accepts a key.
	cut -d: -f1 etc/passwd | sed 's/$/:*:19000:0:99999:7:::/' >etc/shadow
	: >etc/gshadow
	chmod 600 etc/shadow etc/gshadow

	printf '%s: files\n' passwd group shadow hosts >etc/nsswitch.conf
	echo '127.0.0.1 localhost' >etc/hosts
	mkdir -p root home tmp run/sshd var/empty nix etc/nix proc sys dev
	install -d -o 1001 -g 1001 home/nixt
	install -d -o 1002 -g 1002 home/nixu

	# Older suites are not merged: bash is then in /bin only.
	for bin in bin usr/bin; do
		if [ -e "$bin/bash" ]; then ln -sfn bash "$bin/sh"; fi
	done

	# Nix looks at /proc/self/exe, so even asking for its version takes one.
	unshare --mount sh -c 'mount -t proc proc proc && exec chroot . nix --version' >nix-version
}

if [ "$1" = --setup ]; then
	shells "$2"
	setup "$2"
	exit
fi

suite=$1 mirror=$2 dir=$3

# The machine's own proxy for packages, if it has one, applies here too.
options=()
while read -r line; do options+=("--aptopt=$line"); done < <(apt-config dump Acquire::http::Proxy Acquire::https::Proxy 2>/dev/null | grep '::Proxy "' || true)

# Mirrors that are copied seldom serve testing with an expired date; the
# signature is checked all the same.
exec mmdebstrap --quiet --variant=extract \
	--aptopt='Acquire::Check-Valid-Until "false"' \
	--aptopt='Acquire::Retries "3"' \
	"${options[@]}" \
	--include=base-files,base-passwd,bash,coreutils,dash,debianutils,findutils,grep,iproute2,libc-bin,login,mawk,mount,nix-bin,openssh-client,openssh-server,passwd,procps,sed,util-linux \
	--extract-hook="bash '$(realpath "$0")' --setup \"\$1\"" \
	"$suite" "$dir" "$mirror"
