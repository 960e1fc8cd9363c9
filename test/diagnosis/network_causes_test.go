// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
)

// networkCauses are those found before an SSH server answers.
func networkCauses() []cause {
	return []cause{
		{
			name: "refused", title: "sshd is not running",
			means:   "The machine answers that nothing listens on the port.",
			nixSays: "`ssh: connect to host … port 22: Connection refused`, then `failed to start SSH connection` or `unexpected end-of-file`.",
			mend:    "Start sshd on the machine; its log says why it ended.",
			breaks:  func(p *patient) { p.run(stopSSHD) },
			want: diagnosis{
				condition: v1alpha1.ConditionReachable, reason: "ConnectionRefused",
				words: []string{"which answered before", "start it there"},
			},
			remedy: func(p *patient, _ string) { p.run(startSSHD) },
		},
	}
}

const (
	stopSSHD = `kill $(cat /run/sshd.pid) && while kill -0 $(cat /run/sshd.pid) 2>/dev/null; do sleep 0.02; done`
	// startSSHD starts it as a service that belongs to nobody who logs in.
	startSSHD = `
setsid /usr/sbin/sshd -D -f /etc/ssh/lab_sshd_config -E /var/log/lab/sshd.log </dev/null >/dev/null 2>&1 &
echo $! >/run/sshd.pid
for i in $(seq 500); do
	grep -q . /proc/net/tcp && ps -o args= -p $(cat /run/sshd.pid) | grep -q '\[listener\]' && exit 0
	sleep 0.02
done
exit 1`
)
