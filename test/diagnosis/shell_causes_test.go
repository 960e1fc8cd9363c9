// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	"fmt"
	"regexp"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// shellCauses lie between the login and nix-daemon.
func shellCauses() []cause {
	all := []cause{
		{
			name: "nologin", title: "The login shell is nologin",
			means:   "Logging in works, but the user's shell is there to keep people out.",
			nixSays: "`protocol mismatch, got 'This account is currently not available.'`.",
			mend:    "`chsh -s /bin/sh nix-ssh`; NixOS: `users.users.nix-ssh.useDefaultShell = true`.",
			breaks:  func(p *patient) { p.setShell("/usr/sbin/nologin") },
			want: diagnosis{
				condition: v1alpha1.ConditionNixAvailable, reason: "LoginShellDisabled",
				words: []string{"not available", "give the user a shell such as /bin/sh"},
			},
			remedy: func(p *patient, _ string) { p.setShell("/bin/sh") },
		},
		{
			name: "false", title: "The login shell is false",
			means:  "The same, but the shell does not say so. A forced command that fails in silence looks the same.",
			mend:   "`chsh -s /bin/sh nix-ssh`; NixOS: `users.users.nix-ssh.useDefaultShell = true`.",
			breaks: func(p *patient) { p.setShell("/bin/false") },
			want: diagnosis{
				condition: v1alpha1.ConditionNixAvailable, reason: "LoginShellDisabled",
				words: []string{"without a word", "give the user a shell such as /bin/sh"},
			},
			remedy: func(p *patient, _ string) { p.setShell("/bin/sh") },
		},
		{
			name: "true", title: "The login shell is true",
			means:  "It ends at once, and as if all were well. A forced command that does nothing looks the same.",
			mend:   "`chsh -s /bin/sh nix-ssh`; NixOS: `users.users.nix-ssh.useDefaultShell = true`.",
			breaks: func(p *patient) { p.setShell("/bin/true") },
			want: diagnosis{
				condition: v1alpha1.ConditionNixAvailable, reason: "LoginShellDisabled",
				words: []string{"without a word", "give the user a shell such as /bin/sh"},
			},
			remedy: func(p *patient, _ string) { p.setShell("/bin/sh") },
		},
		{
			name: "startup-hangs", title: "The shell's startup file hangs",
			means:   "It waits for something that does not come: a file system, a name server, an answer. Nothing that is to be run for the user starts then.",
			nixSays: "nothing: clients hang.",
			mend:    "Take out of `~/.bashrc` (`~/.zshenv`, …) what waits, or have it run for interactive shells only.",
			prepare: func(p *patient) { p.setShell("bash") },
			breaks:  func(p *patient) { p.run("echo sleep 600 >/home/nixt/.bashrc") },
			want: diagnosis{
				condition: v1alpha1.ConditionNixAvailable, reason: "NixDaemonNotAnswering",
				words: []string{"nothing answers within 4s", "startup files of nixt's shell hang", "~/.bashrc"},
			},
			remedy: func(p *patient, _ string) { p.run("rm /home/nixt/.bashrc") },
		},
		forcedCommand("forced-other", "A forced command runs something else", "echo backups only", "LoginShellPrints", `prints "backups only"`, "have it run nix-daemon --stdio"),
		forcedCommand("forced-serve", "A forced command is for ssh:// instead of ssh-ng://", "nix-store --serve --write", "NotNixProtocol", "have it run nix-daemon --stdio"),
		{
			name: "forced-daemon", title: "Only nix-daemon may be run",
			means: "That is a good forced command: it lets the user's key do nothing but build. Whether the builder has the declared " +
				"systems and features cannot be asked then, so that stays open, and nothing is taken out of use because of it.",
			mend: "None is needed. Declare `systems`, `maxJobs` and `supportedFeatures`; with `spec.probe.canary: Enabled` systems are tried.",
			spec: func(spec *v1alpha1.NixBuilderSpec) { spec.MaxJobs = 2 },
			breaks: func(p *patient) {
				p.sshd("ForceCommand nix-daemon --stdio")
				p.forget()
			},
			want: diagnosis{
				condition: v1alpha1.ConditionSystemsVerified, status: metav1.ConditionUnknown, reason: "DiscoveryUnavailable",
				words: []string{"only nix-daemon can be run there"}, state: v1alpha1.EndpointHealthy, listed: true, ready: true, quiet: true,
			},
			remedy: func(p *patient, _ string) { p.sshd() },
		},
	}
	for _, talk := range []struct{ shell, file, prints, hush string }{
		{"bash", ".bashrc", "echo Welcome to builder", "sed -i '1i case $- in *i*) ;; *) return ;; esac' .bashrc"},
		{"zsh", ".zshenv", "echo Welcome to builder", "sed -i 's/^/[[ -o interactive ]] \\&\\& /' .zshenv"},
		{"fish", ".config/fish/config.fish", "echo Welcome to builder", "sed -i '1i status is-interactive; or exit' .config/fish/config.fish"},
		{"tcsh", ".tcshrc", "echo Welcome to builder", "sed -i 's/^/if ($?prompt) /' .tcshrc"},
	} {
		all = append(all, printingShell(talk.shell, talk.file, talk.prints, talk.hush))
	}
	for _, shell := range append([]string{"bash"}, nixlab.LoginShells()...) {
		all = append(all, offPath(shell))
	}
	return append(all, programCauses()...)
}

// printingShell is a user whose startup file prints something.
func printingShell(shell, file, prints, hush string) cause {
	return cause{
		name: "prints-" + shell, title: "The shell's startup file prints something: " + shell,
		means:   "What `~/" + file + "` prints comes before the first word of nix-daemon. Clients fail in the same way.",
		nixSays: "`protocol mismatch, got 'Welcome to builder'`.",
		mend:    "Have `~/" + file + "` print for interactive shells only: `" + hush + "`.",
		prepare: func(p *patient) { p.setShell(shell) },
		breaks: func(p *patient) {
			p.run(fmt.Sprintf("cd /home/%s && mkdir -p $(dirname %s) && echo '%s' >%[2]s && chown -R %[1]s: .", nixlab.TrustedUser, file, prints))
		},
		want: diagnosis{
			condition: v1alpha1.ConditionNixAvailable, reason: "LoginShellPrints",
			words: []string{`prints "Welcome to builder"`, "~/" + file, "for non-interactive shells"},
		},
		remedy: func(p *patient, _ string) { p.run("cd /home/" + nixlab.TrustedUser + " && " + hush) },
	}
}

func forcedCommand(name, title, command, reason string, words ...string) cause {
	return cause{
		name: name, title: title,
		means:  "`ForceCommand` in sshd_config, or `command=` in authorized_keys, runs `" + command + "` whatever is asked for.",
		mend:   "Drop it, or have it run `nix-daemon --stdio`; NixOS: `nix.sshServe.protocol = \"ssh-ng\"`.",
		breaks: func(p *patient) { p.sshd("ForceCommand " + command) },
		want: diagnosis{
			condition: v1alpha1.ConditionNixAvailable, reason: reason, words: words,
		},
		remedy: func(p *patient, _ string) {
			p.sshd("ForceCommand nix-daemon --stdio")
			p.request()
			p.await("in use", v1alpha1.ConditionNixAvailable, func(v vitals) bool {
				return v.condition.Status == metav1.ConditionTrue && v.listed && v.endpoint.State == v1alpha1.EndpointHealthy
			})
			// What is not known with it is another cause.
			p.sshd()
		},
	}
}

// offPath is a builder whose Nix is where its installers put it, and whose shell finds
// it there only when somebody logs in by hand.
func offPath(shell string) cause {
	return cause{
		name: "path-" + shell, title: "nix-daemon is not on PATH: " + shell,
		means:   "Shells that run a single command do not read the files in which Nix's installers extend PATH.",
		nixSays: "`nix-daemon: command not found`, in the words of the shell.",
		mend:    "Set `spec.remoteProgram`, or extend PATH where the shell reads it for every command.",
		prepare: func(p *patient) { p.setShell(shell) },
		breaks: func(p *patient) {
			if err := p.MoveNix(p.Context()); err != nil {
				p.Fatal(err)
			}
		},
		want: diagnosis{
			condition: v1alpha1.ConditionNixAvailable, reason: "NixDaemonNotFound",
			words: []string{"not on the PATH of nixt's non-interactive shell", "spec.remoteProgram", nixlab.ProfileBin},
		},
		remedy: func(p *patient, message string) {
			program := p.inMessage(message, `/nix/\S+/nix-daemon`)
			p.changeSpec(func(spec *v1alpha1.NixBuilderSpec) { spec.RemoteProgram = program })
			// The other programs are found beside it.
			p.awaitVerified()
		},
	}
}

// programCauses are about the program that is to be run.
func programCauses() []cause {
	return []cause{
		{
			name: "program-wrong", title: "remoteProgram does not exist",
			mend: "Correct `spec.remoteProgram`, or leave it out where nix-daemon is on PATH.",
			breaks: func(p *patient) {
				p.changeSpec(func(spec *v1alpha1.NixBuilderSpec) { spec.RemoteProgram = "/opt/nix/bin/nix-daemon" })
			},
			want: diagnosis{
				condition: v1alpha1.ConditionNixAvailable, reason: "NixDaemonNotFound",
				words: []string{"there is no /opt/nix/bin/nix-daemon", "correct spec.remoteProgram"},
			},
			remedy: func(p *patient, _ string) {
				p.changeSpec(func(spec *v1alpha1.NixBuilderSpec) { spec.RemoteProgram = "/usr/bin/nix-daemon" })
				p.awaitVerified()
			},
		},
		otherProgram("program-other", "remoteProgram is another program", "/bin/ls"),
		otherProgram("program-nix", "remoteProgram is nix, not nix-daemon", "/usr/bin/nix"),
		otherProgram("program-true", "remoteProgram is a program that does nothing", "/bin/true"),
		notExecutable("bash"), notExecutable("tcsh"),
	}
}

func otherProgram(name, title, program string) cause {
	setProgram := func(p *patient, program string) {
		p.changeSpec(func(spec *v1alpha1.NixBuilderSpec) { spec.RemoteProgram = program })
	}
	return cause{
		name: name, title: title,
		mend:   "Correct `spec.remoteProgram`, or leave it out where nix-daemon is on PATH.",
		breaks: func(p *patient) { setProgram(p, program) },
		want: diagnosis{
			condition: v1alpha1.ConditionNixAvailable, reason: "NotNixProtocol",
			words: []string{program + " is not nix-daemon", "correct spec.remoteProgram"},
		},
		remedy: func(p *patient, _ string) {
			setProgram(p, "/usr/bin/nix-daemon")
			p.awaitVerified()
		},
	}
}

func notExecutable(shell string) cause {
	return cause{
		name: "not-executable-" + shell, title: "nix-daemon may not be executed: " + shell,
		mend:    "Correct the permissions: `chmod a+rx` on the program and the directories above it. Or `spec.remoteProgram` names a file that is no program.",
		prepare: func(p *patient) { p.setShell(shell) },
		spec:    func(spec *v1alpha1.NixBuilderSpec) { spec.RemoteProgram = "/usr/bin/nix-daemon" },
		breaks:  func(p *patient) { p.run("chmod a-x /usr/bin/nix") },
		want: diagnosis{
			condition: v1alpha1.ConditionNixAvailable, reason: "NixDaemonNotExecutable",
			words: []string{"/usr/bin/nix-daemon may not be executed by nixt", "correct its permissions"},
		},
		remedy: func(p *patient, _ string) { p.run("chmod a+x /usr/bin/nix") },
	}
}

// setShell gives the user another login shell.
func (p *patient) setShell(shell string) {
	p.Helper()
	if err := p.SetLoginShell(p.Context(), nixlab.TrustedUser, shell); err != nil {
		p.Fatal(err)
	}
}

// inMessage picks what a message says to type.
func (p *patient) inMessage(message, pattern string) string {
	p.Helper()
	found := regexp.MustCompile(pattern).FindStringSubmatch(message)
	if found == nil {
		p.Fatalf("no %s in the message: %s", pattern, message)
	}
	return found[len(found)-1]
}

// awaitVerified waits until the builder's own configuration confirms what is declared.
func (p *patient) awaitVerified() {
	p.Helper()
	p.await("verified", v1alpha1.ConditionSystemsVerified, func(v vitals) bool { return v.condition.Status == metav1.ConditionTrue })
}
