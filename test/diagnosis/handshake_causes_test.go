// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	"fmt"
	"net"

	"golang.org/x/crypto/ssh"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// handshakeCauses are those where an SSH server answers and then does not go on.
func handshakeCauses() []cause {
	return []cause{
		{
			name: "max-startups", title: "Too many connections at once",
			means:   "Others are logging in at the same time, or hold connections without logging in.",
			nixSays: "`kex_exchange_identification: Connection closed by remote host`.",
			mend:    "Raise `MaxStartups` in sshd_config; `MaxStartups 100:30:200` suits a builder.",
			breaks: func(p *patient) {
				p.sshd("MaxStartups 2")
				p.occupy(2)
			},
			want: diagnosis{
				condition: v1alpha1.ConditionReachable, reason: "ConnectionTurnedAway", words: []string{"raise MaxStartups"},
			},
			remedy: func(p *patient, _ string) { p.sshd("MaxStartups 100:30:200") },
		},
		{
			name: "penalties", title: "sshd turns the operator's address away",
			means:   "OpenSSH from 9.8 on does so for a while after refused logins. All that come from the same address suffer, other users of the same node included.",
			nixSays: "`kex_exchange_identification: Connection closed by remote host`.",
			mend:    "Exempt the address that sshd's log shows: `PerSourcePenaltyExemptList` in sshd_config. Find out who logs in in vain from there.",
			breaks: func(p *patient) {
				p.sshd("PerSourcePenalties authfail:3600s min:1s")
				p.failLogin()
			},
			want: diagnosis{
				condition: v1alpha1.ConditionReachable, reason: "ConnectionTurnedAway", words: []string{"PerSourcePenaltyExemptList"},
			},
			remedy: func(p *patient, _ string) {
				p.sshd("PerSourcePenalties authfail:3600s min:1s", "PerSourcePenaltyExemptList 127.0.0.0/8")
			},
		},
		{
			name: "no-cipher", title: "No algorithm in common",
			means:   "The SSH server offers only algorithms that are no longer considered safe.",
			nixSays: "`Unable to negotiate with …: no matching cipher found. Their offer: …`.",
			mend:    "Update sshd, or allow the named kind of algorithm in its sshd_config, such as `Ciphers +aes256-gcm@openssh.com`.",
			breaks:  func(p *patient) { p.sshd("Ciphers aes128-cbc") },
			want: diagnosis{
				condition: v1alpha1.ConditionReachable, reason: "NoCommonAlgorithm", words: []string{"cipher algorithm that is considered safe", "allow one in its sshd_config"},
			},
			remedy: func(p *patient, _ string) { p.sshd("Ciphers aes128-cbc,aes256-gcm@openssh.com") },
		},
		{
			name: "no-kex", title: "No key exchange in common",
			nixSays: "`Unable to negotiate with …: no matching key exchange method found. Their offer: …`.",
			mend:    "Update sshd, or allow one in its sshd_config, such as `KexAlgorithms +curve25519-sha256`.",
			breaks:  func(p *patient) { p.sshd("KexAlgorithms diffie-hellman-group1-sha1") },
			want: diagnosis{
				condition: v1alpha1.ConditionReachable, reason: "NoCommonAlgorithm", words: []string{"no key exchange algorithm that is considered safe", "allow one in its sshd_config"},
			},
			remedy: func(p *patient, _ string) { p.sshd("KexAlgorithms diffie-hellman-group1-sha1,curve25519-sha256") },
		},
		{
			name: "handshake-hangs", title: "Large packets are lost",
			means:   "The SSH server greets, in a small packet; the larger ones that follow do not arrive. That is what an MTU looks like that is too large somewhere on the way (VPN, overlay network). A machine that is overloaded may look the same.",
			nixSays: "nothing, for ever.",
			mend:    "Set the same MTU on both sides of the narrow part, or let ICMP through firewalls there.",
			machine: func(opts *nixlab.BuilderOptions) { opts.OwnNetwork = true },
			prepare: connectNarrow,
			breaks:  func(p *patient) { p.setMTU(600) },
			want: diagnosis{
				condition: v1alpha1.ConditionReachable, reason: "SSHHandshakeTimeout", words: []string{"does not finish the key exchange", "look at the MTU"},
			},
			remedy: func(p *patient, _ string) { p.setMTU(1500) },
		},
	}
}

// occupy opens connections to sshd and leaves them alone until the end of the test.
func (p *patient) occupy(connections int) {
	p.Helper()
	for range connections {
		c, err := net.Dial("tcp", p.Address())
		if err != nil {
			p.Fatal(err)
		}
		p.Cleanup(func() { c.Close() })
		// Its greeting shows that sshd counts it.
		if _, err := c.Read(make([]byte, 256)); err != nil {
			p.Fatal(err)
		}
	}
}

// failLogin tries to log in with a key that nobody knows.
func (p *patient) failLogin() {
	p.Helper()
	signer, err := ssh.ParsePrivateKey(p.newKey())
	if err != nil {
		p.Fatal(err)
	}
	client, err := ssh.Dial("tcp", p.Address(), &ssh.ClientConfig{
		User: nixlab.TrustedUser, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
	})
	if err == nil {
		client.Close()
		p.Fatal("a key that nobody knows is accepted")
	}
}

// The machine whose packets get lost, and this one, on the line between them.
const (
	narrowNear = "192.0.2.129"
	narrowFar  = "192.0.2.130"
)

// connectNarrow connects the machine, which has a network of its own, by a line.
func connectNarrow(p *patient) {
	pid, err := p.PID()
	p.must(err)
	p.must(ip("link", "add", "narrow", "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(pid)))
	p.must(ip("address", "add", narrowNear+"/30", "dev", "narrow"))
	p.must(ip("link", "set", "narrow", "up"))
	p.run("ip address add " + narrowFar + "/30 dev eth0 && ip link set eth0 up")
	p.host = narrowFar
}

// setMTU sets what this side of the line takes in one packet. It goes on promising more.
func (p *patient) setMTU(size int) {
	p.Helper()
	p.must(ip("link", "set", "narrow", "mtu", fmt.Sprint(size)))
	p.must(ip("route", "replace", narrowFar+"/32", "dev", "narrow", "advmss", "1460"))
}
