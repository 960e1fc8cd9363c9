#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The nix-builder-operator Authors
#
# host.sh STATE ROOTFS NAME STORE
#
# Turns the process it runs in, which is the first of new mount and process
# namespaces, into the init of a small machine: an overlay over ROOTFS whose
# changes live in memory, with STORE on /nix. STATE/files is copied over
# the root, STATE/binds lists further directories ("source target ro|rw").
# /lab-init then runs as process 1; it writes a line to descriptor 3 once the
# machine is up.
set -euo pipefail
state=$1 rootfs=$2 name=$3 store=$4
root=$state/root

mount --make-rprivate /
mount -t tmpfs -o mode=755 lab "$state/overlay"
mkdir "$state/overlay/upper" "$state/overlay/work"
mount -t overlay -o "lowerdir=$rootfs,upperdir=$state/overlay/upper,workdir=$state/overlay/work" lab "$root"
mkdir -p "$root/var/log/lab" "$root/.old"

mount --bind "$store" "$root/nix"
mount --bind "$state/log" "$root/var/log/lab"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mount -t tmpfs -o mode=755 run "$root/run"
while read -r source target mode; do
	mkdir -p "$root$target"
	mount --bind "$source" "$root$target"
	mount -o "remount,bind,$mode" "$root$target"
done <"$state/binds"
cp -a "$state/files/." "$root/"
echo "$name" >/proc/sys/kernel/hostname

# A changed root directory alone (chroot) would be enough for builds, but not
# for the sandbox of Nix.
cd "$root"
pivot_root . .old
cd /
umount -l /.old
rmdir /.old
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root USER=root LAB_NAME="$name" /bin/bash /lab-init
