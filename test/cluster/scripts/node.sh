#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The nix-builder-operator Authors
#
# node.sh DIRECTORY NAME GROUP
#
# Turns the process it runs in, which is the first of new namespaces, into the
# init of a node. DIRECTORY is the node's own, GROUP the path of its control
# group below that of the caller, in every hierarchy. It writes a line to
# descriptor 3 once services can start, and then starts every script that is
# named on the fifo DIRECTORY/start.
set -euo pipefail
dir=$1 name=$2 group=$3
hierarchies=(cpu cpuacct cpuset memory devices freezer blkio pids systemd)

if [ -z "${4:-}" ]; then
	# A control group of its own first: what the node's programs make lies
	# below it, so that one tree holds all that has to go in the end.
	for h in "${hierarchies[@]}"; do
		own=/sys/fs/cgroup/$h$(sed -nE "s/^[0-9]+:(name=)?$h:(.*)/\2/p" /proc/self/cgroup)
		mkdir -p "$own/$group"
		if [ "$h" = cpuset ]; then
			path=$own
			for part in ${group//\// }; do
				for file in cpuset.cpus cpuset.mems; do cat "$path/$file" >"$path/$part/$file"; done
				path=$path/$part
			done
		fi
		echo $$ >"$own/$group/cgroup.procs"
	done
	exec unshare --cgroup bash "$0" "$dir" "$name" "$group" inside
fi

mount --make-rprivate /
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
for h in "${hierarchies[@]}"; do
	mkdir "/sys/fs/cgroup/$h"
	options=$h
	if [ "$h" = systemd ]; then options=none,name=systemd; fi
	mount -t cgroup -o "$options" cgroup "/sys/fs/cgroup/$h"
done

# What the node writes at places of the system's stays in memory, and what is
# large goes to its own directory.
mount -t tmpfs -o mode=755 node "$dir/changes"
for place in /etc /opt /var/lib /var/log; do
	changes=$dir/changes/${place//\//-}
	mkdir "$changes" "$changes.work"
	mount -t overlay -o "lowerdir=$place,upperdir=$changes,workdir=$changes.work" node "$place"
done
for place in /var/lib/kubelet /var/lib/containerd /var/log/pods; do
	rm -rf "$place"
	mkdir -p "$place" "$dir/disk/${place##*/}"
	mount --bind "$dir/disk/${place##*/}" "$place"
done
rm -rf /etc/cni /var/lib/cni /var/log/containers
mkdir -p /etc/cni/net.d /var/lib/cni /var/log/containers
cp "$dir/cni.conflist" /etc/cni/net.d/10-node.conflist
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/netns /run/lock /run/proc
mount --make-rshared /

# The kubelet wants these settings of the whole machine. It finds them as it
# wants them, and the machine keeps its own.
while read -r setting value; do
	echo "$value" >"$dir/changes/value-${setting##*/}"
	mount --bind "$dir/changes/value-${setting##*/}" "/proc/sys/$setting"
done <<-'END'
	vm/overcommit_memory 1
	kernel/panic 10
	kernel/panic_on_oops 1
END
# With these mounts /proc is not all there, and then the kernel lets no user
# namespace mount one. It is content with one that is, anywhere.
mount -t proc proc /run/proc

echo "$name" >/proc/sys/kernel/hostname
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward

mkfifo "$dir/start"
exec 4<>"$dir/start"
echo ready >&3
exec 3>&-
# Bash collects every process that has lost its parent.
while read -r -u 4 script; do bash "$script" </dev/null 4>&- & done
