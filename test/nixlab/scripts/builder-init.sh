# SPDX-License-Identifier: Apache-2.0
# Copyright The nix-builder-operator Authors
#
# Process 1 of a builder: nix-daemon and sshd.
set -eu
ip link set lo up 2>/dev/null || true
mkdir -p /run/sshd /nix/store /nix/var/nix/daemon-socket /nix/var/nix/gcroots/per-user /nix/var/nix/profiles/per-user /nix/var/log/nix/drvs
chgrp nixbld /nix/store
chmod 1775 /nix/store
chmod 1777 /nix/var/nix/gcroots/per-user /nix/var/nix/profiles/per-user

: >/var/log/lab/sshd.log
/usr/sbin/sshd -D -f /etc/ssh/lab_sshd_config -E /var/log/lab/sshd.log </dev/null 3>&- &
sshd=$!
. /lab-daemon
echo $sshd >/run/sshd.pid
until grep -q '^Server listening' /var/log/lab/sshd.log; do
	kill -0 $sshd 2>/dev/null || { cat /var/log/lab/sshd.log >&2; exit 1; }
	sleep 0.02
done
echo ready >&3
exec 3>&-

# Nothing is left to do but to collect processes that lost their parent.
while :; do wait -n || sleep 1; done
