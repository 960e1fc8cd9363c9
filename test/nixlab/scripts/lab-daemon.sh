# SPDX-License-Identifier: Apache-2.0
# Copyright The nix-builder-operator Authors
#
# Starts nix-daemon and waits until it listens.
rm -f /nix/var/nix/daemon-socket/socket # of the time before a restart
# Without its state directory a daemon would take its own socket for the
# store and fork without end; naming the store rules that out.
NIX_REMOTE=local nix-daemon </dev/null >>/var/log/lab/nix-daemon.log 2>&1 3>&- &
echo $! >/run/nix-daemon.pid
until [ -S /nix/var/nix/daemon-socket/socket ]; do
	kill -0 $! 2>/dev/null || { tail /var/log/lab/nix-daemon.log >&2; exit 1; }
	sleep 0.02
done
