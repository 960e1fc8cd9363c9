// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

// Reason says in one CamelCase word why an outcome is as it is. Reasons are part of
// the API: they appear in conditions, events and metrics. Catalogue describes them.
type Reason string

// Reasons that belong to no step in particular.
const (
	ReasonNotProbed  Reason = "NotProbed"
	ReasonNotReached Reason = "NotReached"
	// ReasonAllPassed is the reason of a healthy endpoint.
	ReasonAllPassed Reason = "AllStepsPassed"
)

// Reasons of StepReachable.
const (
	ReasonConnected         Reason = "Connected"
	ReasonNameUnknown       Reason = "HostNameUnknown"
	ReasonNameLookupFailed  Reason = "HostNameLookupFailed"
	ReasonAddressDenied     Reason = "AddressDenied"
	ReasonConnectionRefused Reason = "ConnectionRefused"
	ReasonUnreachable       Reason = "HostUnreachable"
	ReasonConnectTimeout    Reason = "ConnectTimeout"
	ReasonSSHSilent         Reason = "SSHSilent"
	ReasonSSHStopped        Reason = "SSHServerStopped"
	ReasonNotSSH            Reason = "NotAnSSHServer"
	ReasonTurnedAway        Reason = "ConnectionTurnedAway"
	ReasonNoCommonAlgorithm Reason = "NoCommonAlgorithm"
	ReasonHandshakeTimeout  Reason = "SSHHandshakeTimeout"
	ReasonHandshakeFailed   Reason = "SSHHandshakeFailed"
	ReasonJumpUnreachable   Reason = "JumpHostUnreachable"
	ReasonJumpForwarding    Reason = "JumpHostRefusesForwarding"
)

// Reasons of StepHostKeyVerified.
const (
	ReasonHostKeyMatches      Reason = "HostKeyMatches"
	ReasonHostKeyFirstUse     Reason = "HostKeyTrustedOnFirstUse"
	ReasonHostKeyMalformed    Reason = "HostKeyEntryMalformed"
	ReasonHostKeyUnknown      Reason = "HostKeyUnknown"
	ReasonHostKeyChanged      Reason = "HostKeyChanged"
	ReasonHostKeyType         Reason = "HostKeyOfOtherType"
	ReasonHostCertMissing     Reason = "HostCertificateMissing"
	ReasonHostCertAuthority   Reason = "HostCertificateAuthorityUnknown"
	ReasonHostCertPrincipal   Reason = "HostCertificateForOtherName"
	ReasonHostCertExpired     Reason = "HostCertificateExpired"
	ReasonHostCertNotYetValid Reason = "HostCertificateNotYetValid"
	ReasonHostCertInvalid     Reason = "HostCertificateInvalid"
	ReasonJumpHostKey         Reason = "JumpHostKeyNotAccepted"
)

// Reasons of StepAuthenticated. Those about a credential alone are also what
// CheckCredential finds.
const (
	ReasonAuthenticated         Reason = "LoggedIn"
	ReasonCredentialUsable      Reason = "CredentialUsable"
	ReasonNoCredential          Reason = "NoCredential"
	ReasonKeyPassphrase         Reason = "PrivateKeyHasPassphrase"
	ReasonKeyMalformed          Reason = "PrivateKeyMalformed"
	ReasonKeyIsPublic           Reason = "PublicKeyInsteadOfPrivate"
	ReasonKeyUnsupported        Reason = "PrivateKeyTypeUnsupported"
	ReasonCertificateMalformed  Reason = "CertificateMalformed"
	ReasonCertificateMismatch   Reason = "CertificateOfOtherKey"
	ReasonCertificateOutOfDate  Reason = "CertificateOutOfDate"
	ReasonSigningFailed         Reason = "SigningFailed"
	ReasonAuthRefused           Reason = "LoginRefused"
	ReasonAuthDropped           Reason = "LoginDropped"
	ReasonAuthTimeout           Reason = "LoginTimeout"
	ReasonAuthProtocolViolation Reason = "LoginProtocolViolation"
	ReasonJumpLoginRefused      Reason = "JumpHostLoginRefused"
	ReasonJumpLoginFailed       Reason = "JumpHostLoginFailed"
)

// Reasons of StepNixAvailable.
const (
	ReasonNixAnswers         Reason = "NixDaemonAnswers"
	ReasonSessionRefused     Reason = "SessionRefused"
	ReasonSessionTimeout     Reason = "SessionTimeout"
	ReasonCommandRefused     Reason = "CommandRefused"
	ReasonConnectionLost     Reason = "ConnectionLost"
	ReasonLoginDisabled      Reason = "LoginShellDisabled"
	ReasonLoginShellPrints   Reason = "LoginShellPrints"
	ReasonNixNotFound        Reason = "NixDaemonNotFound"
	ReasonNixNotExecutable   Reason = "NixDaemonNotExecutable"
	ReasonDaemonNotRunning   Reason = "NixDaemonNotRunning"
	ReasonDaemonNotAnswering Reason = "NixDaemonNotAnswering"
	ReasonDaemonDenied       Reason = "NixDaemonAccessDenied"
	ReasonDaemonHungUp       Reason = "NixDaemonHungUp"
	ReasonDaemonRefused      Reason = "NixDaemonRefused"
	ReasonDaemonExited       Reason = "NixDaemonExited"
	ReasonNotNixProtocol     Reason = "NotNixProtocol"
	ReasonVersionTooOld      Reason = "VersionTooOld"
	ReasonStoreFull          Reason = "StoreFull"
)

// Reasons of StepTrusted.
const (
	ReasonUserTrusted    Reason = "UserTrusted"
	ReasonUserNotTrusted Reason = "UserNotTrusted"
	ReasonTrustUnknown   Reason = "TrustUnknown"
)

// Reasons of StepMachineFit.
const (
	ReasonMachineFit         Reason = "MachineFit"
	ReasonDiskPressure       Reason = "DiskPressure"
	ReasonOverloaded         Reason = "Overloaded"
	ReasonClockSkewed        Reason = "ClockSkewed"
	ReasonMachineNotMeasured Reason = "MachineNotMeasured"
)

// Reasons of StepSystemsVerified. Only the daemon itself can refute a declared system,
// and its protocol has no question for it but a build: so only canaries fail.
const (
	ReasonSystemsVerified      Reason = "SystemsVerified"
	ReasonDiscoveryDisabled    Reason = "DiscoveryDisabled"
	ReasonDiscoveryUnavailable Reason = "DiscoveryUnavailable"
	ReasonSystemsNotConfirmed  Reason = "SystemsNotConfirmed"
	ReasonFeaturesNotConfirmed Reason = "FeaturesNotConfirmed"
	ReasonCanaryInconclusive   Reason = "CanaryInconclusive"
	ReasonSystemsRefuted       Reason = "SystemsRefuted"
	ReasonFeaturesRefuted      Reason = "FeaturesRefuted"
	ReasonCanaryFailed         Reason = "CanaryFailed"
)

// Entry describes a reason.
type Entry struct {
	Step   Step
	Status Status
	Reason Reason
	// AtOnce tells that the endpoint becomes unhealthy at the first probe that ends
	// so, without regard to its threshold.
	AtOnce bool
	// StaysInUse tells that the endpoint remains in use although the outcome is
	// False.
	StaysInUse bool
	// Meaning says in short what is the case and what to do about it. Messages say
	// it with names and particulars.
	Meaning string
}

// Catalogue lists every reason an outcome can have, in the order of the steps.
func Catalogue() []Entry {
	var all []Entry
	for _, part := range [][]Entry{
		reachableReasons(), hostKeyReasons(), loginReasons(), nixReasons(), trustReasons(),
		machineReasons(), systemsReasons(),
	} {
		all = append(all, part...)
	}
	return all
}

// entryOf finds a reason in the catalogue.
func entryOf(reason Reason) (Entry, bool) {
	for _, entry := range Catalogue() {
		if entry.Reason == reason {
			return entry, true
		}
	}
	return Entry{}, false
}

// StaysInUse tells whether an endpoint with a False outcome for this reason remains
// in use.
func (r Reason) StaysInUse() bool {
	entry, _ := entryOf(r)
	return entry.StaysInUse
}

// NotConfirmed tells whether an Unknown outcome for this reason names something in the
// spec that may have to be corrected. The other doubts are about what cannot be found
// out.
func (r Reason) NotConfirmed() bool {
	return r == ReasonSystemsNotConfirmed || r == ReasonFeaturesNotConfirmed
}

func reachableReasons() []Entry {
	return entries(StepReachable, []Entry{
		{Status: StatusTrue, Reason: ReasonConnected, Meaning: "An SSH server answers."},
		{Reason: ReasonNameUnknown, Meaning: "The host name does not exist. Correct `host`, or the cluster's DNS."},
		{Reason: ReasonNameLookupFailed, Meaning: "The name server does not answer, or fails."},
		{Reason: ReasonAddressDenied, Meaning: "The address lies in a range that the operator is told not to connect to."},
		{Reason: ReasonConnectionRefused, Meaning: "Nothing listens on the port. Start sshd there, or correct `port`."},
		{Reason: ReasonUnreachable, Meaning: "There is no route to the address."},
		{Reason: ReasonConnectTimeout, Meaning: "No answer at all. The machine is off, or a firewall drops the connection."},
		{Reason: ReasonSSHSilent, Meaning: "The connection is accepted, but no SSH server speaks there. Correct `host` and `port`."},
		{Reason: ReasonSSHStopped, Meaning: "The machine still accepts connections, but its SSH server, which answered before, does nothing. Its processes are stopped, or it has run out of memory or disk."},
		{Reason: ReasonNotSSH, Meaning: "Something else than an SSH server answers. Correct `host` and `port`."},
		{Reason: ReasonTurnedAway, Meaning: "sshd closes the connection before greeting: too many connections (`MaxStartups`), or a penalty for this source address (`PerSourcePenalties`)."},
		{Reason: ReasonNoCommonAlgorithm, Meaning: "The SSH server offers no algorithm that is considered safe. Update it, or relax its configuration."},
		{Reason: ReasonHandshakeTimeout, Meaning: "The SSH server greets, but does not finish the key exchange."},
		{Reason: ReasonHandshakeFailed, Meaning: "The SSH server breaks off the key exchange, or breaks the protocol."},
		{Reason: ReasonJumpUnreachable, Meaning: "The jump host cannot be connected to, or no SSH server answers there. Correct `proxyJump`, or start sshd there; the message says what happened."},
		{AtOnce: true, Reason: ReasonJumpForwarding, Meaning: "The jump host does not pass connections on to the machine. Look at `AllowTcpForwarding` and `PermitOpen` in its sshd_config, and at the key's line in authorized_keys."},
	})
}

func hostKeyReasons() []Entry {
	return entries(StepHostKeyVerified, []Entry{
		{Status: StatusTrue, Reason: ReasonHostKeyMatches, Meaning: "The host key, or its certificate, is an expected one."},
		{Status: StatusTrue, Reason: ReasonHostKeyFirstUse, Meaning: "The host key was seen for the first time and is pinned now."},
		{AtOnce: true, Reason: ReasonHostKeyMalformed, Meaning: "An entry of `hostKeys` or `hostCertificateAuthorities` is not a public key line."},
		{AtOnce: true, Reason: ReasonHostKeyUnknown, Meaning: "No host key is given for the endpoint. Compare the one seen with the machine's and add it to `hostKeys`."},
		{AtOnce: true, Reason: ReasonHostKeyChanged, Meaning: "The host presents another key than expected. If the machine was reinstalled, give the new key; otherwise somebody is in between."},
		{AtOnce: true, Reason: ReasonHostKeyType, Meaning: "The host has no key of an expected type. Give a key of a type it has."},
		{AtOnce: true, Reason: ReasonHostCertMissing, Meaning: "Authorities are listed, but the host presents no certificate. Sign one, or give its key."},
		{AtOnce: true, Reason: ReasonHostCertAuthority, Meaning: "The host certificate is signed by an authority that is not listed."},
		{AtOnce: true, Reason: ReasonHostCertPrincipal, Meaning: "The host certificate does not cover the name in `host`."},
		{AtOnce: true, Reason: ReasonHostCertExpired, Meaning: "The host certificate's validity is over. Renew it."},
		{AtOnce: true, Reason: ReasonHostCertNotYetValid, Meaning: "The host certificate is not valid yet. Look at the clocks."},
		{AtOnce: true, Reason: ReasonHostCertInvalid, Meaning: "The certificate is not a host certificate, or its signature is wrong."},
		{AtOnce: true, Reason: ReasonJumpHostKey, Meaning: "The jump host presents another key or certificate than expected. If it was reinstalled, give the new key in `proxyJump.hostKeys`; otherwise somebody is in between."},
	})
}

func loginReasons() []Entry {
	return entries(StepAuthenticated, []Entry{
		{Status: StatusTrue, Reason: ReasonAuthenticated, Meaning: "The user is logged in."},
		{AtOnce: true, Reason: ReasonNoCredential, Meaning: "There is no Secret with a private key."},
		{AtOnce: true, Reason: ReasonKeyPassphrase, Meaning: "The private key is protected by a passphrase, which nobody can type. Use one without."},
		{AtOnce: true, Reason: ReasonKeyMalformed, Meaning: "The Secret's `ssh-privatekey` is not a private key, or ssh itself cannot read it: its last newline is missing, or its lines end as on Windows. Store the file as it is, with `--from-file`."},
		{AtOnce: true, Reason: ReasonKeyIsPublic, Meaning: "The Secret's `ssh-privatekey` is the public key."},
		{AtOnce: true, Reason: ReasonKeyUnsupported, Meaning: "The private key is of a type no longer supported. Use ed25519."},
		{AtOnce: true, Reason: ReasonCertificateMalformed, Meaning: "The Secret's `ssh-privatekey-cert.pub` is not a user certificate."},
		{AtOnce: true, Reason: ReasonCertificateMismatch, Meaning: "The Secret's certificate belongs to another private key."},
		{AtOnce: true, Reason: ReasonCertificateOutOfDate, Meaning: "The Secret's certificate is not valid at this time. Renew it."},
		{AtOnce: true, Reason: ReasonSigningFailed, Meaning: "The private key could not sign."},
		{AtOnce: true, Reason: ReasonAuthRefused, Meaning: "The builder accepts none of the keys for the user. Add the public key to its `authorized_keys`, or correct `user`."},
		{Reason: ReasonAuthDropped, Meaning: "sshd closes the connection instead of answering the login."},
		{Reason: ReasonAuthTimeout, Meaning: "sshd does not answer the login in time."},
		{Reason: ReasonAuthProtocolViolation, Meaning: "The SSH server breaks the protocol at login."},
		{AtOnce: true, Reason: ReasonJumpLoginRefused, Meaning: "The jump host accepts none of the keys. Add the public key to `authorized_keys` there, or correct `proxyJump.user`."},
		{Reason: ReasonJumpLoginFailed, Meaning: "The jump host breaks off the login, or does not answer it in time."},
	})
}

func nixReasons() []Entry {
	return entries(StepNixAvailable, []Entry{
		{Status: StatusTrue, Reason: ReasonNixAnswers, Meaning: "nix-daemon answers with a version that is supported."},
		{Reason: ReasonSessionRefused, Meaning: "sshd opens no session. Look at `MaxSessions` and at limits of the user."},
		{Reason: ReasonSessionTimeout, Meaning: "sshd does not start the command in time."},
		{Reason: ReasonCommandRefused, Meaning: "sshd does not run commands for this user."},
		{Reason: ReasonConnectionLost, Meaning: "The connection broke while nix-daemon was asked."},
		{Reason: ReasonLoginDisabled, Meaning: "The user's login shell, or a forced command, refuses to run anything, or does nothing at all. Give the user a real shell."},
		{Reason: ReasonLoginShellPrints, Meaning: "The user's shell prints something before the command runs, or a forced command prints it instead. Silence its startup files for non-interactive use."},
		{Reason: ReasonNixNotFound, Meaning: "nix-daemon is not on the user's PATH. Set `remoteProgram`, or fix PATH for non-interactive shells."},
		{Reason: ReasonNixNotExecutable, Meaning: "The user may not execute nix-daemon, or it is not a program."},
		{Reason: ReasonDaemonNotRunning, Meaning: "No daemon serves the Nix socket. Start it."},
		{Reason: ReasonDaemonNotAnswering, Meaning: "Login works, but nothing answers: the daemon is stopped or overloaded, or a startup file of the user's shell hangs."},
		{Reason: ReasonDaemonDenied, Meaning: "The user may not use the daemon. Look at `allowed-users` and at the permissions below /nix/var/nix."},
		{Reason: ReasonDaemonHungUp, Meaning: "The daemon closes the connection at once. The user is missing in `allowed-users` (who is in `trusted-users` need not be there), or the daemon crashes."},
		{Reason: ReasonDaemonRefused, Meaning: "The daemon answers with an error instead of the handshake."},
		{Reason: ReasonDaemonExited, Meaning: "nix-daemon ends with an error, such as one in its nix.conf. The message says what it printed."},
		{Reason: ReasonNotNixProtocol, Meaning: "What runs there does not speak Nix's worker protocol: it is another program than nix-daemon. Correct `remoteProgram`, or a forced command."},
		{AtOnce: true, Reason: ReasonVersionTooOld, Meaning: "Nix is older than 2.8. Update it."},
		{Status: StatusUnknown, Reason: ReasonStoreFull, Meaning: "nix-daemon fails, as it does on a full disk, and the disk is full: see `MachineFit`."},
	})
}

func trustReasons() []Entry {
	return entries(StepTrusted, []Entry{
		{Status: StatusTrue, Reason: ReasonUserTrusted, Meaning: "The daemon trusts the user."},
		{AtOnce: true, Reason: ReasonUserNotTrusted, Meaning: "The user is missing in `trusted-users` of the builder's nix.conf. Add it with `extra-trusted-users`, which leaves those there who are."},
		{Status: StatusUnknown, Reason: ReasonTrustUnknown, Meaning: "The daemon does not tell whether it trusts the user."},
	})
}

func machineReasons() []Entry {
	return entries(StepMachineFit, []Entry{
		{Status: StatusTrue, Reason: ReasonMachineFit, Meaning: "Disk, load and clock are within `thresholds`."},
		{AtOnce: true, Reason: ReasonDiskPressure, Meaning: "The file system of the store has less room than `minFreeSpace`. Collect garbage there, let Nix do so by itself (`min-free`, `max-free`), or lower the threshold."},
		{AtOnce: true, Reason: ReasonOverloaded, Meaning: "Load or pressure is above a threshold. Lower `maxJobs`, find out what else runs there, or raise the threshold."},
		{StaysInUse: true, Reason: ReasonClockSkewed, Meaning: "The machine's clock differs from the operator's by more than `maxClockSkewSeconds`. Have both synchronised."},
		{Status: StatusUnknown, Reason: ReasonMachineNotMeasured, Meaning: "The machine cannot be measured: only nix-daemon may be run there, or the login shell or its tools are unusual ones."},
	})
}

func systemsReasons() []Entry {
	return entries(StepSystemsVerified, []Entry{
		{Status: StatusTrue, Reason: ReasonSystemsVerified, Meaning: "The builder's configuration has all declared systems and features, or the canary built for all systems and with all features."},
		{StaysInUse: true, Reason: ReasonSystemsRefuted, Meaning: "The canary's build fails for some systems: the daemon does not build for them, or emulation is missing. These leave the machines file; the builder stays in use for the others."},
		{StaysInUse: true, Reason: ReasonFeaturesRefuted, Meaning: "The daemon refuses the canary's build for want of a feature. That feature leaves the machines file; the builder stays in use for other builds. Correct `supportedFeatures` or `mandatoryFeatures`, or `system-features` in its nix.conf."},
		{AtOnce: true, Reason: ReasonCanaryFailed, Meaning: "The canary's build fails for every system: sandbox, build users, `max-jobs`, disk or emulation are broken, and any other build would fail, too."},
		{Status: StatusUnknown, Reason: ReasonCanaryInconclusive, Meaning: "The canary's build showed nothing: it took too long, or was broken off. It is repeated soon."},
		{Status: StatusUnknown, Reason: ReasonDiscoveryDisabled, Meaning: "The builder is not asked, since `discovery` is disabled."},
		{Status: StatusUnknown, Reason: ReasonDiscoveryUnavailable, Meaning: "The builder does not tell: only nix-daemon may be run there, or `nix-command` is not available."},
		{Status: StatusUnknown, Reason: ReasonSystemsNotConfirmed, Meaning: "A declared system is not in the builder's configuration as the ssh user sees it. Correct `systems`, or the builder's `extra-platforms`."},
		{Status: StatusUnknown, Reason: ReasonFeaturesNotConfirmed, Meaning: "A declared feature is not in the builder's configuration as the ssh user sees it. That may be an error of declaration, or of view: `kvm` depends on who asks."},
	})
}

// entries fills in the step, and the status of failures.
func entries(step Step, list []Entry) []Entry {
	for i := range list {
		list[i].Step = step
		if list[i].Status == "" {
			list[i].Status = StatusFalse
		}
	}
	return list
}
