// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	"strings"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// nixCauses are those found after the login.
func nixCauses() []cause {
	var all []cause
	for _, part := range [][]cause{shellCauses(), daemonCauses(), accessCauses(), machineCauses(), featureCauses(), systemsCauses(), canaryCauses()} {
		all = append(all, part...)
	}
	return all
}

// daemonCauses are about the version and the state of the Nix daemon.
func daemonCauses() []cause {
	return []cause{
		{
			name: "too-old", title: "Nix is too old",
			means:    "Nix 2.8 is the oldest that can be a builder. Updates later than that are not needed.",
			mend:     "Update Nix on the machine, and restart nix-daemon.",
			versions: []nixlab.Version{nixlab.Nix28},
			breaks:   func(p *patient) { p.reinstall(nixlab.Nix23) },
			want: diagnosis{
				condition: v1alpha1.ConditionNixAvailable, reason: "VersionTooOld", words: []string{"1.34 (Nix 2.8) or newer is needed: update Nix there"},
			},
			remedy: func(p *patient, _ string) { p.reinstall(nixlab.Nix28) },
		},
		daemonDown("daemon-down", "The Nix daemon is not running", func(p *patient) { p.killDaemon() }),
		daemonDown("daemon-no-socket", "The Nix daemon's socket does not exist", func(p *patient) {
			p.killDaemon()
			p.run("rm /nix/var/nix/daemon-socket/socket")
		}),
		{
			name: "daemon-stopped", title: "The Nix daemon does not answer",
			means:    "The login works and nix-daemon starts, so it is not the network, nor sshd.",
			nixSays:  "nothing: clients hang.",
			mend:     "Restart nix-daemon, and look at what the machine is busy with.",
			versions: nixlab.Versions(),
			breaks: func(p *patient) {
				if err := p.StopDaemon(); err != nil {
					p.Fatal(err)
				}
			},
			want: diagnosis{
				condition: v1alpha1.ConditionNixAvailable, reason: "NixDaemonNotAnswering",
				words: []string{"answer", "within 4s", "stopped or overloaded", "restart nix-daemon there"},
			},
			remedy: func(p *patient, _ string) { p.restartDaemon() },
		},
		{
			name: "settings", title: "Nix cannot read its settings",
			means:    "An error in nix.conf ends every program of Nix that starts after it was made.",
			nixSays:  "`syntax error in configuration line`, or `illegal configuration line` (2.8).",
			mend:     "Correct the line in /etc/nix/nix.conf, and restart nix-daemon; on NixOS, correct `nix.settings` and `nix.extraOptions`.",
			versions: nixlab.Versions(),
			breaks:   func(p *patient) { p.run("echo this is wrong >>/etc/nix/nix.conf") },
			want: diagnosis{
				condition: v1alpha1.ConditionNixAvailable, reason: "NixDaemonExited",
				words: []string{"cannot read its settings", "correct /etc/nix/nix.conf there"},
			},
			remedy: func(p *patient, message string) {
				p.run("sed -i '/^this is wrong$/d' " + p.inMessage(message, `correct (/\S+) there`))
				p.restartDaemon()
			},
		},
		{
			name: "database", title: "The Nix store's database is broken",
			means:    "The daemon takes the connection, and cannot open its store.",
			mend:     "Look at the daemon's log; restore /nix/var/nix/db from a backup, or reinstall Nix.",
			versions: nixlab.Versions(),
			breaks: func(p *patient) {
				p.run("cd /nix/var/nix && cp -a db /nix/kept && rm -f db/db.sqlite-* && head -c 100000 /dev/urandom >db/db.sqlite")
			},
			want: diagnosis{condition: v1alpha1.ConditionNixAvailable, reason: "NixDaemonHungUp", words: []string{"broken database", "its log says which"}},
			remedy: func(p *patient, _ string) {
				p.run("cd /nix/var/nix && rm -r db && mv /nix/kept db")
			},
		},
		{
			name: "read-only", title: "The store is read-only",
			means:   "Kernels make disks read-only when they fail. The daemon cannot open its store then.",
			mend:    "Look at the kernel's and the daemon's log, check the disk, and mount it again: `mount -o remount,rw /nix`.",
			prepare: littleDisk, spec: anyRoom,
			// What writes at this very moment is in the way.
			breaks: func(p *patient) { p.run("until mount -o remount,ro /nix; do sleep 0.05; done") },
			want:   diagnosis{condition: v1alpha1.ConditionNixAvailable, reason: "NixDaemonHungUp", words: []string{"read-only disk", "its log says which"}},
			remedy: func(p *patient, _ string) { p.run("mount -o remount,rw /nix") },
		},
	}
}

func daemonDown(name, title string, breaks func(*patient)) cause {
	return cause{
		name: name, title: title,
		nixSays:  "`cannot connect to socket at '/nix/var/nix/daemon-socket/socket'` (2.8), or `Nix daemon disconnected unexpectedly`.",
		mend:     "`systemctl enable --now nix-daemon.socket`; macOS: `launchctl kickstart system/org.nixos.nix-daemon`.",
		versions: nixlab.Versions(),
		breaks:   breaks,
		want: diagnosis{
			condition: v1alpha1.ConditionNixAvailable, reason: "NixDaemonNotRunning",
			words: []string{"the Nix daemon is not running", "start it (systemctl enable --now nix-daemon.socket"},
		},
		remedy: func(p *patient, _ string) { p.restartDaemon() },
	}
}

// accessCauses are about what the daemon thinks of the user.
func accessCauses() []cause {
	return []cause{
		{
			name: "socket-denied", title: "The Nix daemon's socket is closed to the user",
			mend:     "`chmod 755 /nix /nix/var /nix/var/nix /nix/var/nix/daemon-socket; chmod 666 /nix/var/nix/daemon-socket/socket`.",
			versions: nixlab.Versions(),
			breaks:   func(p *patient) { p.run("chmod 700 /nix/var/nix/daemon-socket") },
			want: diagnosis{
				condition: v1alpha1.ConditionNixAvailable, reason: "NixDaemonAccessDenied",
				words: []string{"its socket is closed to the user"},
			},
			remedy: func(p *patient, message string) { p.run(p.inMessage(message, `"(chmod [^"]*)"`)) },
		},
		{
			name: "allowed-users", title: "The user is not in allowed-users",
			means:    "Users in `trusted-users` are allowed without being listed there, and builders need to trust their user anyway.",
			nixSays:  "`Connection reset by peer` (2.8), or `Nix daemon disconnected unexpectedly`.",
			mend:     "`extra-trusted-users = nix-ssh` in /etc/nix/nix.conf adds the user to those who are there (NixOS: `nix.settings.trusted-users`); then restart nix-daemon.",
			versions: nixlab.Versions(),
			breaks:   func(p *patient) { p.nixConf("allowed-users = root", "trusted-users = root") },
			want: diagnosis{
				condition: v1alpha1.ConditionNixAvailable, reason: "NixDaemonHungUp",
				words: []string{"closes the connection of nixt at once", "allowed-users"},
			},
			remedy: func(p *patient, message string) {
				p.nixConf(p.inMessage(message, `the line "(extra-trusted-users = [^"]*)"`))
			},
		},
		{
			name: "trusted-users", title: "The user is not in trusted-users",
			nixSays:  "`error: you are not privileged to build input-addressed derivations`, or `… because it lacks a signature by a trusted key`.",
			mend:     "`extra-trusted-users = nix-ssh` in /etc/nix/nix.conf adds the user to those who are there (NixOS: `nix.settings.trusted-users`); then restart nix-daemon.",
			versions: nixlab.Versions(),
			breaks:   func(p *patient) { p.nixConf("trusted-users = root") },
			want: diagnosis{
				condition: v1alpha1.ConditionTrusted, reason: "UserNotTrusted",
				words: []string{"does not trust nixt", "restart nix-daemon"},
			},
			remedy: func(p *patient, message string) {
				p.nixConf(p.inMessage(message, `the line "(extra-trusted-users = [^"]*)"`))
			},
		},
	}
}

// nixConf adds lines to nix.conf, where the last of several counts, and has the daemon
// read it again.
func (p *patient) nixConf(lines ...string) {
	p.Helper()
	p.run("printf '%s\\n' " + quoteAll(lines) + " >>/etc/nix/nix.conf")
	p.restartDaemon()
}

// restartDaemon is what a machine's service manager does when told to.
func (p *patient) restartDaemon() {
	p.Helper()
	if err := p.RestartDaemon(p.Context()); err != nil {
		p.Fatal(err)
	}
}

func (p *patient) killDaemon() {
	p.Helper()
	if err := p.KillDaemon(); err != nil {
		p.Fatal(err)
	}
}

func (p *patient) reinstall(version nixlab.Version) {
	p.Helper()
	if err := p.Reinstall(p.Context(), version); err != nil {
		p.Fatal(err)
	}
	if got := p.Nix(); !strings.HasPrefix(got, string(version)+".") {
		p.Fatalf("Nix %s was installed, not %s", got, version)
	}
}
