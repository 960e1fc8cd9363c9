# SPDX-License-Identifier: Apache-2.0
# Copyright The nix-builder-operator Authors
#
# Process 1 of a client. LAB_DAEMON set: Nix runs as a daemon for ordinary
# users. LAB_SSH unset: no ssh programs, so builds that work did not use any.
set -eu
. /lab-options
if [ -z "${LAB_SSH:-}" ]; then
	rm -rf /usr/bin/ssh /usr/bin/ssh-* /usr/bin/scp /usr/bin/sftp /usr/bin/slogin /usr/sbin/sshd /usr/lib/openssh /etc/ssh
fi
ip link set lo up 2>/dev/null || true
mkdir -p /nix/store /nix/var/nix/daemon-socket /nix/var/nix/gcroots/per-user /nix/var/nix/profiles/per-user /nix/var/log/nix/drvs
chgrp nixbld /nix/store
chmod 1775 /nix/store
chmod 1777 /nix/var/nix/gcroots/per-user /nix/var/nix/profiles/per-user
if [ -n "${LAB_DAEMON:-}" ]; then
	rm -f /nix/var/nix/daemon-socket/socket # of the time before a restart
	NIX_REMOTE=local nix-daemon </dev/null >>/var/log/lab/nix-daemon.log 2>&1 3>&- &
	echo $! >/run/nix-daemon.pid
	until [ -S /nix/var/nix/daemon-socket/socket ]; do sleep 0.02; done
fi
echo ready >&3
exec 3>&-
while :; do wait -n || sleep 1; done
