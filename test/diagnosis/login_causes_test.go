// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	"fmt"
	"regexp"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// deniedWords is what ssh prints where a login is refused, whatever the cause.
const deniedWords = "`Permission denied (publickey).`, for every one of these causes, then `failed to start SSH connection`."

// loginCauses are those where sshd does not let the user in.
func loginCauses() []cause {
	return append(refusedCauses(), unansweredCauses()...)
}

// ownKeys has sshd look at the user's own authorized_keys, as sshd does by default.
func ownKeys(p *patient) {
	p.run(`install -d -m 700 -o nixt -g nixt /home/nixt/.ssh
install -m 600 -o nixt -g nixt /etc/ssh/lab_authorized_keys /home/nixt/.ssh/authorized_keys`)
	p.sshd("AuthorizedKeysFile .ssh/authorized_keys")
}

func refused(words ...string) diagnosis {
	return diagnosis{condition: v1alpha1.ConditionAuthenticated, reason: "LoginRefused", words: words}
}

func refusedCauses() []cause {
	return []cause{
		{
			name: "key-refused", title: "The key is not accepted",
			nixSays: deniedWords,
			mend:    "Add the public key, which the message shows, to `~nix-ssh/.ssh/authorized_keys` on the machine (NixOS: `users.users.nix-ssh.openssh.authorizedKeys.keys`).",
			prepare: ownKeys,
			breaks:  func(p *patient) { p.run("rm /home/nixt/.ssh/authorized_keys") },
			want:    refused("with the key of Secret builder-key", "~nixt/.ssh/authorized_keys"),
			remedy: func(p *patient, message string) {
				key := regexp.MustCompile(`ssh-ed25519 AAAA[A-Za-z0-9+/=]+`).FindString(message)
				p.run(fmt.Sprintf("echo '%s' >>~nixt/.ssh/authorized_keys", key))
			},
		},
		{
			name: "key-file-writable", title: "sshd ignores the file with the key",
			means:   "The key is in `authorized_keys`, but others than the user may write to that file or to a directory above it.",
			nixSays: deniedWords,
			mend:    "`chmod go-w` the home directory, `.ssh` and `authorized_keys`; they have to belong to the user or to root.",
			prepare: ownKeys,
			breaks:  func(p *patient) { p.run("chmod 777 /home/nixt") },
			want:    refused("chmod go-w"),
			remedy:  func(p *patient, _ string) { p.run("chmod go-w ~nixt ~nixt/.ssh ~nixt/.ssh/authorized_keys") },
		},
		{
			name: "user-unknown", title: "There is no such user",
			means:   "sshd does not say so: whether an account exists is not to be found out from outside.",
			nixSays: deniedWords,
			mend:    "Correct `spec.user`, or make the user.",
			breaks:  func(p *patient) { p.changeSpec(func(spec *v1alpha1.NixBuilderSpec) { spec.User = "nix-shh" }) },
			want:    refused("login as nix-shh refused", "correct spec.user"),
			remedy: func(p *patient, _ string) {
				p.changeSpec(func(spec *v1alpha1.NixBuilderSpec) { spec.User = nixlab.TrustedUser })
			},
		},
		{
			name: "user-locked", title: "The account is locked",
			nixSays: deniedWords,
			mend:    "`usermod -p '*' nix-ssh`: an account without a password has `*` in `/etc/shadow`, not `!`. Where it has one, which has to stay, `usermod -U nix-ssh`.",
			breaks:  func(p *patient) { p.run("sed -i 's/^nixt:[*]/nixt:!/' /etc/shadow") },
			want:    refused("a locked account", "AuthorizedKeysFile", "sshd's log"),
			remedy:  func(p *patient, _ string) { p.run("usermod -p '*' nixt") },
		},
		{
			name: "allow-users", title: "sshd admits other users only",
			nixSays: deniedWords,
			mend:    "Add the user to `AllowUsers` (or its group to `AllowGroups`) in sshd_config, or take it out of `DenyUsers`.",
			breaks:  func(p *patient) { p.sshd("AllowUsers admin") },
			want:    refused("AllowUsers", "sshd's log"),
			remedy:  func(p *patient, _ string) { p.sshd("AllowUsers admin nixt") },
		},
		{
			name: "deny-users", title: "sshd denies the user",
			nixSays: deniedWords,
			mend:    "Take the user out of `DenyUsers` (or its group out of `DenyGroups`) in sshd_config.",
			breaks:  func(p *patient) { p.sshd("DenyUsers nixt") },
			want:    refused("DenyUsers", "sshd's log"),
			remedy:  func(p *patient, _ string) { p.sshd() },
		},
		{
			name: "key-from", title: "The key is for other addresses",
			means:   "The line in `authorized_keys` has `from=\"…\"`, or sshd_config a `Match Address`, without the address that the operator comes from.",
			nixSays: deniedWords,
			mend:    "Add the address that sshd's log shows. Pods often come from their node's address.",
			prepare: ownKeys,
			breaks:  func(p *patient) { p.run(`sed -i 's/^/from="198.51.100.7" /' /home/nixt/.ssh/authorized_keys`) },
			want:    refused("from=", "sshd's log"),
			remedy: func(p *patient, _ string) {
				p.run(`sed -i 's/198.51.100.7/198.51.100.7,127.0.0.0\/8/' /home/nixt/.ssh/authorized_keys`)
			},
		},
		{
			name: "user-cert-authority", title: "The machine does not know the user certificate's authority",
			nixSays: deniedWords,
			mend:    "Name a file with the authority's public key as `TrustedUserCAKeys` in sshd_config, or leave the certificate out of the Secret.",
			prepare: certifyUser,
			breaks:  func(p *patient) { p.sshd("AuthorizedKeysFile none") },
			want:    refused("the certificate of Secret builder-key", "TrustedUserCAKeys"), fromHere: nowhere,
			remedy: func(p *patient, _ string) { p.sshd("AuthorizedKeysFile none", "TrustedUserCAKeys /root/ca.pub") },
		},
		{
			name: "user-cert-name", title: "The user certificate is for another user",
			nixSays: deniedWords,
			mend:    "Sign it for the user: `ssh-keygen -s CA -I builders -n nix-ssh -V +52w FILE.pub`.",
			prepare: certifyUser,
			breaks: func(p *patient) {
				p.setUserCertificate(p.userCertificate(p.clientKey(), "admin", validNow))
			},
			want: refused(`which is for "admin"`, "sign it for nixt"), fromHere: nowhere,
			remedy: func(p *patient, _ string) {
				p.setUserCertificate(p.userCertificate(p.clientKey(), nixlab.TrustedUser, validNow))
			},
		},
		{
			name: "second-factor", title: "The key alone is not enough",
			means:   "sshd wants a password or a code besides, which nobody can type.",
			nixSays: "`Permission denied (password).`",
			mend:    "Except the user from that in sshd_config: `Match User nix-ssh` with `AuthenticationMethods publickey`.",
			breaks: func(p *patient) {
				p.sshd("PasswordAuthentication yes", "AuthenticationMethods publickey,password")
			},
			want:   refused("AuthenticationMethods"),
			remedy: func(p *patient, _ string) { p.sshd("PasswordAuthentication yes", "AuthenticationMethods publickey") },
		},
	}
}

// unansweredCauses are those where sshd does not even refuse.
func unansweredCauses() []cause {
	return []cause{
		{
			name: "login-hangs", title: "The login is not answered",
			means:   "sshd waits for something before it decides: a directory server, PAM, `AuthorizedKeysCommand`, a disk.",
			nixSays: "nothing until `LoginGraceTime` is over (two minutes).",
			mend:    "See in sshd's log what it waits for.",
			prepare: slowDirectory,
			breaks:  func(p *patient) { p.run(directoryHangs) },
			want: diagnosis{
				condition: v1alpha1.ConditionAuthenticated, reason: "LoginTimeout",
				words: []string{"does not answer the login as nixt", "AuthorizedKeysCommand"},
			},
			remedy: func(p *patient, _ string) { p.run(directoryAnswers) },
		},
		{
			name: "login-dropped", title: "sshd hangs up at the login",
			means:   "It gives up before it has decided: it crashes, `LoginGraceTime` is over, or there were more attempts than it admits (every Secret in `spec.credentials.secretRefs` is one).",
			nixSays: "`Connection closed by … port 22`, or `Received disconnect from …: Too many authentication failures`.",
			mend:    "See in sshd's log why, and mend that (here: a program that looks keys up and brings sshd down); `LoginGraceTime` and `MaxAuthTries` are in sshd_config.",
			prepare: slowDirectory,
			breaks:  func(p *patient) { p.run("sed -i 's/^cat/kill -9 $PPID; cat/' /opt/keys") },
			want: diagnosis{
				condition: v1alpha1.ConditionAuthenticated, reason: "LoginDropped", words: []string{"look at its log", "LoginGraceTime"},
			},
			remedy: func(p *patient, _ string) { p.run("sed -i 's/^kill.*; cat/cat/' /opt/keys") },
		},
	}
}

// slowDirectory has the machine ask for keys in a place that may be slow.
func slowDirectory(p *patient) {
	p.run("mkdir -p /opt && printf '#!/bin/sh\\ncat /run/directory-server\\n' >/opt/keys && chmod 755 /opt /opt/keys && " + directoryAnswers)
	p.sshd(askDirectory()...)
}

func askDirectory() []string {
	return []string{"AuthorizedKeysCommand /opt/keys", "AuthorizedKeysCommandUser root", "AuthorizedKeysFile none"}
}

const (
	directoryAnswers = "rm -f /run/directory-server && cp /etc/ssh/lab_authorized_keys /run/directory-server"
	directoryHangs   = "rm -f /run/directory-server && mkfifo -m 644 /run/directory-server"
)

// sessionCauses are those between the login and the command.
func sessionCauses() []cause {
	return []cause{{
		name: "max-sessions", title: "sshd opens no session",
		means:   "The login works, but nothing may be run.",
		nixSays: "`channel 0: open failed: administratively prohibited: open failed`.",
		mend:    "Raise `MaxSessions` in sshd_config; 10 is the default. The dispatcher uses as many as it gets.",
		breaks:  func(p *patient) { p.sshd("MaxSessions 0") },
		want: diagnosis{
			condition: v1alpha1.ConditionNixAvailable, reason: "SessionRefused", words: []string{"look at MaxSessions"},
		},
		remedy: func(p *patient, _ string) { p.sshd("MaxSessions 10") },
	}}
}
