// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// MaxMessage is the length of a message in bytes at most.
const MaxMessage = 1024

const (
	messageNotProbed = "not probed yet"
	messageAllPassed = "all steps passed"
	messageRestored  = "as of before the last restart"
)

// clip shortens a message to MaxMessage bytes, at the edge of a character.
func clip(s string) string {
	const mark = "…"
	if len(s) <= MaxMessage {
		return s
	}
	end := MaxMessage - len(mark)
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + mark
}

// who names an endpoint and its place, as messages begin.
func (t *Target) who() string {
	if t.Endpoint == "" {
		return t.Address() + t.behind()
	}
	return t.Endpoint + " (" + t.Address() + t.behind() + ")"
}

func (t *Target) says(format string, args ...any) string {
	return clip(t.who() + ": " + fmt.Sprintf(format, args...))
}

// quoted shows text of the builder, or something else where there is none.
func quoted(text, otherwise string) string {
	if text = sshconn.Printable(text); text != "" {
		return "\"" + text + "\""
	}
	return otherwise
}

func messageNotReached(failed Step) string {
	return "not checked, because " + string(failed) + " is not true"
}

// Messages of StepReachable.

func messageConnected(t *Target) string { return t.says("an SSH server answers") }

// messageReachable puts first what is likelier: spoken tells whether an SSH server
// answered there before.
func messageReachable(t *Target, reason Reason, e *sshconn.Error, spoken bool) string {
	switch reason {
	case ReasonNameUnknown:
		return t.says("the host name %q does not exist; correct spec.endpoints[].host, or the cluster's DNS", t.Host)
	case ReasonNameLookupFailed:
		return t.says("the name server gives no answer for %q; look at the cluster's DNS", t.Host)
	case ReasonAddressDenied:
		return t.says("%s, which the operator is told not to connect to; use another address, or change the operator's --denied-ranges", e.Detail)
	case ReasonConnectionRefused:
		if spoken {
			return t.says("connection refused: sshd, which answered before, is not running, or a firewall turns connections away; start it there (its log says why it ended)")
		}
		return t.says("connection refused: nothing listens there; start sshd, or correct spec.endpoints[].port")
	case ReasonUnreachable:
		return t.says("there is no route to the machine; look at the network between the cluster and it")
	case ReasonConnectTimeout:
		return t.says("no answer within %s: the machine is off, or a firewall drops the connection", t.Timeout)
	case ReasonSSHSilent:
		return t.says("connected, but no SSH server speaks there within %s; correct host and port", t.Timeout)
	case ReasonSSHStopped:
		return t.says("the machine accepts the connection, but its SSH server, which answered before, does nothing for %s: its processes are stopped, or it has run out of memory or disk; look at the machine's console", t.Timeout)
	case ReasonNotSSH:
		return t.says("something else than an SSH server answers: %s; correct host and port", quoted(e.Detail, "bytes that are no text"))
	case ReasonTurnedAway:
		return t.says("sshd closes the connection before greeting (%s): too many connections at once (raise MaxStartups in its sshd_config), or a penalty for refused logins from the operator's address (it wears off; PerSourcePenaltyExemptList in its sshd_config exempts the address, which its log shows)", quoted(e.Detail, "without a word"))
	case ReasonNoCommonAlgorithm:
		return t.says("the SSH server offers no %s algorithm that is considered safe; update it, or allow one in its sshd_config", e.Detail)
	case ReasonHandshakeTimeout:
		return t.says("the SSH server greets, but does not finish the key exchange within %s: it is overloaded, or packets are lost (look at the MTU)", t.Timeout)
	default:
		return t.says("the SSH server breaks off the key exchange: %s", quoted(e.Detail, "connection closed"))
	}
}

// Messages of StepHostKeyVerified.

func messageHostKeyVerified(t *Target, reason Reason, fingerprint string) string {
	if reason == ReasonHostKeyFirstUse {
		return t.says("host key %s seen for the first time: pinned", fingerprint)
	}
	return t.says("host key %s is as expected", fingerprint)
}

func messageHostKeyMalformed(t *Target, field string, index int) string {
	return t.says("%s[%d] is not a public key line such as \"ssh-ed25519 AAAA…\"; take it from /etc/ssh/ssh_host_ed25519_key.pub on the machine", field, index)
}

// unseen stands for a host key that was not presented.
const unseen = "unknown"

func messageHostKey(t *Target, reason Reason, e *sshconn.Error) string {
	seen := unseen
	if e.Seen != nil {
		seen = sshconn.Fingerprint(e.Seen)
	}
	expected := strings.Join(e.Expected, " or ")
	switch reason {
	case ReasonHostKeyUnknown:
		return t.says("no host key is given to compare with; it presents %s: if that is what \"ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub\" prints on the machine, add to hostKeys: %s",
			seen, sshconn.AuthorizedKey(sshconn.PlainKey(e.Seen)))
	case ReasonHostKeyChanged:
		return t.says("HOST KEY CHANGED: seen %s, expected %s. If the machine was reinstalled, %s; otherwise somebody may be in between. It is not connected to until then",
			seen, expected, repin(t, seen))
	case ReasonHostKeyType:
		return t.says("the host has no key of the expected type (expected %s, seen %s; it offers %s); if the machine was reinstalled, %s",
			expected, seen, quoted(e.Detail, "nothing"), repin(t, seen))
	case ReasonHostCertMissing:
		return t.says("the host presents no certificate (it offers %s), as hostCertificateAuthorities demands; sign one for it, or put its key into hostKeys", quoted(e.Detail, "nothing"))
	case ReasonHostCertAuthority:
		return t.says("the host certificate (key %s) is %s, which is not among hostCertificateAuthorities (%s)", seen, e.Detail, expected)
	case ReasonHostCertPrincipal:
		return t.says("the host certificate (key %s) is for %s, not for %q; sign it with \"ssh-keygen -h -n %s …\"", seen, quoted(e.Detail, "nobody"), t.Host, t.Host)
	case ReasonHostCertExpired:
		return t.says("the host certificate (key %s) expired at %s; sign a new one and restart sshd there", seen, e.Detail)
	case ReasonHostCertNotYetValid:
		return t.says("the host certificate (key %s) is not valid before %s; look at the clocks of signer and operator", seen, e.Detail)
	default:
		return t.says("the host certificate (key %s) is not usable: %s", seen, quoted(e.Detail, "its signature is wrong, or it has options that are not known"))
	}
}

// repin tells how to accept another host key.
func repin(t *Target, seen string) string {
	if firstUse(t) && seen != unseen {
		return fmt.Sprintf("accept its new key with \"kubectl -n %s annotate --overwrite nixbuilder %s nixbuilder.io/accept-host-key=%s=%s\"",
			t.builder.Namespace, t.builder.Name, t.Endpoint, seen)
	}
	if firstUse(t) {
		return "accept its new key once it presents one"
	}
	return "put its new key into hostKeys"
}

func parenthesis(text string) string {
	if text = quoted(text, ""); text != "" {
		return " (" + text + ")"
	}
	return ""
}

// Messages of StepNixAvailable.

func messageNixAnswers(t *Target, facts *Facts) string {
	return t.says("Nix %s answers, worker protocol %s", facts.NixVersion, facts.ProtocolVersion)
}

// nixFailure is what is known about a nix-daemon that did not answer as it should.
type nixFailure struct {
	reason Reason
	status string // how the program ended, in words
	text   string // of the builder
	place  place  // of a program that is not where it is looked for
	silent bool   // nothing came on standard output
	well   bool   // it ended with status 0
}

func messageNix(t *Target, f nixFailure) string {
	program := t.program("nix-daemon")
	if f.reason == ReasonDaemonHungUp {
		// Whether it is noticed in reading or in writing is by chance.
		f.text, _, _ = strings.Cut(f.text, ": error:")
	}
	said := quoted(f.text, "nothing")
	switch f.reason {
	case ReasonNixNotFound:
		return t.says("%s", notFound(t, f))
	case ReasonNixNotExecutable:
		return t.says("%s may not be executed by %s (%s, it says %s); correct its permissions or spec.remoteProgram", program, t.User, f.status, said)
	case ReasonDaemonNotRunning:
		return t.says("%s starts, but the Nix daemon is not running (it says %s); start it (systemctl enable --now nix-daemon.socket, or launchctl kickstart system/org.nixos.nix-daemon)", program, said)
	case ReasonDaemonNotAnswering:
		if f.silent {
			return t.says("login works, but nothing answers within %s: the startup files of %s's shell hang (~/.bashrc and the like, also for non-interactive shells), "+
				"or the Nix daemon is stopped or overloaded; correct these files, or restart nix-daemon there, and look at what keeps the machine busy", t.Timeout, t.User)
		}
		return t.says("login works and %s starts, but the Nix daemon does not answer within %s: it is stopped or overloaded; restart nix-daemon there, and look at what keeps the machine busy", program, t.Timeout)
	case ReasonDaemonDenied:
		return t.says("%s may not use the Nix daemon (it says %s): its socket is closed to the user (\"chmod 755 /nix/var/nix/daemon-socket; chmod 666 /nix/var/nix/daemon-socket/socket\"), "+
			"or the user is missing in allowed-users (%s)", t.User, said, trustLine(t))
	case ReasonDaemonHungUp:
		// What nix-daemon says depends on whether it was reading or writing then.
		return t.says("the Nix daemon closes the connection of %s at once: the user is missing in allowed-users (%s), or the daemon cannot open its store (broken database, read-only disk): its log says which", t.User, trustLine(t))
	case ReasonDaemonRefused:
		return t.says("the Nix daemon refuses the connection of %s: %s; look at its log", t.User, said)
	case ReasonVersionTooOld:
		return t.says("it speaks worker protocol %s; 1.34 (Nix 2.8) or newer is needed: update Nix there", f.text)
	case ReasonNotNixProtocol:
		return t.says("%s; correct spec.remoteProgram, or %s", notDaemon(t, f), forcedNote(t))
	case ReasonStoreFull:
		return t.says("%s fails (%s, it says %s), as it does where the disk is full; see MachineFit", program, f.status, said)
	case ReasonDaemonExited:
		if file := brokenSettings(f.text); file != "" {
			return t.says("%s cannot read its settings (it says %s); correct %s there, and restart nix-daemon", program, said, file)
		}
		return t.says("%s ended at once (%s, it says %s); run \"%s\" there as %s to see why, and correct spec.remoteProgram if that is not nix-daemon",
			program, f.status, said, t.daemonCommand(), t.User)
	default:
		return messageSession(t, f)
	}
}

// messageSession is about what stands between the login and nix-daemon.
func messageSession(t *Target, f nixFailure) string {
	said := quoted(f.text, "nothing")
	switch f.reason {
	case ReasonSessionRefused:
		return t.says("sshd opens no session (%s); look at MaxSessions in its sshd_config", said)
	case ReasonSessionTimeout:
		return t.says("sshd does not start a command within %s: the machine is overloaded, or its disk or user directory hangs", t.Timeout)
	case ReasonCommandRefused:
		return t.says("sshd does not run commands for %s; look at ForceCommand and at the user's shell", t.User)
	case ReasonLoginDisabled:
		return t.says("the login shell of %s refuses to run commands (%s); give the user a shell such as /bin/sh, or %s", t.User, quoted(f.text, "it ends without a word"), forcedNote(t))
	case ReasonLoginShellPrints:
		return t.says("the shell of %s prints %s before nix-daemon starts; silence its startup files (~/.bashrc, ~/.zshenv, ~/.config/fish/config.fish, ~/.tcshrc) for non-interactive shells, or %s", t.User, said, forcedNote(t))
	default:
		return t.says("the connection broke while nix-daemon was asked")
	}
}

// forcedNote is about what takes the place of nix-daemon.
func forcedNote(t *Target) string {
	return "where the key or " + t.User + " has a forced command (command= in authorized_keys, ForceCommand in sshd_config, NixOS: nix.sshServe), have it run nix-daemon --stdio"
}

// notDaemon tells how a program shows that it is not nix-daemon.
func notDaemon(t *Target, f nixFailure) string {
	did := ""
	if f.text != "" || f.silent {
		did = fmt.Sprintf(" (%s, it says %s)", f.status, quoted(f.text, "nothing"))
	}
	if t.RemoteProgram != "" {
		return t.RemoteProgram + " is not nix-daemon: it does not speak Nix's worker protocol" + did
	}
	return "nix-daemon does not speak Nix's worker protocol" + did
}

// trustLine is what makes a user trusted, and with that allowed. It adds to the users who
// are trusted already; a line of trusted-users would replace them.
func trustLine(t *Target) string {
	return fmt.Sprintf("put the line \"extra-trusted-users = %s\" into /etc/nix/nix.conf there, or on NixOS %[1]s into nix.settings.trusted-users, and restart nix-daemon", t.User)
}

// program is the path by which a program of Nix is started.
func (t *Target) program(name string) string {
	switch {
	case t.RemoteProgram == "":
		return name
	case name == "nix-daemon":
		return t.RemoteProgram
	default:
		return path.Join(path.Dir(t.RemoteProgram), name)
	}
}

// Messages of StepTrusted.

func messageTrust(t *Target, reason Reason) string {
	switch reason {
	case ReasonUserTrusted:
		return t.says("the Nix daemon trusts %s", t.User)
	case ReasonUserNotTrusted:
		return t.says("the Nix daemon does not trust %s, so it takes no builds from it; %s", t.User, trustLine(t))
	default:
		return t.says("the Nix daemon does not tell whether it trusts %s", t.User)
	}
}

// Messages of StepSystemsVerified.

func messageSystems(t *Target, reason Reason, missing, offered []string) string {
	switch reason {
	case ReasonSystemsVerified:
		return t.says("the builder's configuration has all declared systems and features")
	case ReasonDiscoveryDisabled:
		return t.says("not asked for, since spec.discovery is Disabled")
	case ReasonSystemsNotConfirmed:
		return t.says("declared system %s is not in the builder's own configuration as %s sees it (%s); correct spec.systems, or extra-platforms in its nix.conf",
			strings.Join(missing, ", "), t.User, list(offered))
	case ReasonFeaturesNotConfirmed:
		return t.says("declared feature %s is not in the builder's own configuration as %s sees it (%s); correct spec.supportedFeatures or spec.mandatoryFeatures, or system-features in its nix.conf%s",
			strings.Join(missing, ", "), t.User, list(offered), kvmNote(missing))
	default:
		return t.says("the builder does not tell its systems and features: only nix-daemon can be run there, or it takes longer than %s", discoveryTimeout(t.Timeout))
	}
}

func kvmNote(missing []string) string {
	if !slices.Contains(missing, "kvm") {
		return ""
	}
	return " (kvm is listed only where that user may open /dev/kvm, so the daemon may have it all the same)"
}

func list(words []string) string {
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, ", ")
}
