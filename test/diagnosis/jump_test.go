// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/bench/netline"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

const (
	// jumpSecret holds the key for the jump host, which does not accept the machine's.
	jumpSecret = "jump-key"
	// Addresses in the network that only the jump host's relay leads into.
	jumpInside = "127.77.0.1"
	farInside  = "127.77.0.2"
	// jumpUser may forward connections on the jump host, and has no shell there.
	jumpUser = nixlab.UntrustedUser
	// jumpKeys are the keys that it takes, where they outlast a restart.
	jumpKeys = "/nix/jump_keys"
)

// farSite is behind a jump host: a network of its own with the jump host and the machine.
type farSite struct {
	network *netline.Namespace
	err     error
	jump    *nixlab.Builder
}

// machine puts the machine into the network.
func (f *farSite) machine(opts *nixlab.BuilderOptions) {
	if f.network, f.err = netline.NewNamespace(); f.err == nil {
		opts.Namespace, opts.Address = f.network.Path(), farInside
	}
}

// dial connects within the network.
func (f *farSite) dial(ctx context.Context, address string) (conn net.Conn, err error) {
	err = f.network.Do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, "tcp", address)
		return err
	})
	return conn, err
}

// prepare starts the jump host and has the machine reached through it.
func (f *farSite) prepare(p *patient) {
	p.Helper()
	if f.err != nil {
		p.Fatal(f.err)
	}
	p.Cleanup(f.network.Close)
	if conn, err := net.Dial("tcp", p.Address()); err == nil {
		conn.Close()
		p.Fatal("the machine can be reached without a jump host")
	}
	f.jump = p.site.newBuilder(p.T, nixlab.BuilderOptions{
		Name: p.namespace + "-jump", Namespace: f.network.Path(), Address: jumpInside,
		SSHDConfig: "AllowTcpForwarding local\nForceCommand /usr/sbin/nologin\nPermitTTY no\nMatch User " + jumpUser +
			"\nAuthorizedKeysFile none\nAuthorizedKeysCommandUser root\nAuthorizedKeysCommand /bin/cat " + jumpKeys,
	})
	// Names are looked up there, in a file.
	run(p.T, f.jump, "echo 'hosts: files' >/etc/nsswitch.conf")
	link, err := p.site.lab.NewLinkThrough(f.jump.Address(), f.dial)
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(link.Close) // it dials in the network
	host, port, err := net.SplitHostPort(link.Address())
	if err != nil {
		p.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		p.Fatal(err)
	}
	key := filepath.Join(p.dir, jumpSecret)
	if output, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "jump", "-f", key).CombinedOutput(); err != nil {
		p.Fatalf("ssh-keygen: %v\n%s", err, output)
	}
	private, err := os.ReadFile(key)
	if err != nil {
		p.Fatal(err)
	}
	public, err := os.ReadFile(key + ".pub")
	if err != nil {
		p.Fatal(err)
	}
	f.setKeys(p, fmt.Sprintf("restrict,port-forwarding,permitopen=\"%s\" %s", p.Address(), public))
	secret := keySecret(p.namespace, private)
	secret.Name = jumpSecret
	p.create(secret)
	p.respec = func(spec *v1alpha1.NixBuilderSpec) {
		spec.ProxyJump = &v1alpha1.ProxyJump{
			Host: host, Port: int32(number), User: jumpUser, HostKeys: []string{f.jump.HostKey()},
			Credentials: &v1alpha1.Credentials{SecretRefs: []v1alpha1.SecretReference{{Name: jumpSecret}}},
		}
	}
}

// setKeys replaces the keys that the jump host accepts.
func (f *farSite) setKeys(p *patient, text string) {
	p.Helper()
	if err := f.jump.WriteFile(jumpKeys, text, 0o644); err != nil {
		p.Fatal(err)
	}
}

// change changes the jump host's part of the spec.
func (f *farSite) change(change func(*v1alpha1.ProxyJump)) func(*patient) {
	return func(p *patient) {
		p.Helper()
		p.changeSpec(func(spec *v1alpha1.NixBuilderSpec) { change(spec.ProxyJump) })
	}
}

// onJump runs a script on the jump host.
func (f *farSite) onJump(script string) func(*patient) {
	return func(p *patient) {
		p.Helper()
		run(p.T, f.jump, script)
	}
}

// without makes a remedy of something that needs no message.
func without(do func(*patient)) func(*patient, string) {
	return func(p *patient, _ string) {
		p.Helper()
		do(p)
	}
}

// behind completes a cause that is about a machine behind a jump host.
func (f *farSite) behind(c cause) cause {
	c.machine, c.prepare, c.fromHere = f.machine, f.prepare, nowhere
	return c
}

// quotedKey finds a public key, with what stands before it, in a message.
var quotedKey = regexp.MustCompile(`"?((?:restrict\S* )?ssh-ed25519 AAAA[A-Za-z0-9+/=]+)`)

// jumpCauses are those where the way through a jump host is barred.
func jumpCauses() []cause { return append(jumpHostCauses(), beyondJumpCauses()...) }

func jumpHostCauses() []cause {
	wrongPort, wrongName, wrongKey, login, forwarding := &farSite{}, &farSite{}, &farSite{}, &farSite{}, &farSite{}
	var port int32
	var host string
	return []cause{
		wrongPort.behind(cause{
			name: "jump-refused", title: "The jump host refuses connections",
			mend: "Start sshd on the jump host, or correct `spec.proxyJump.port`.",
			breaks: wrongPort.change(func(j *v1alpha1.ProxyJump) {
				port, j.Port = j.Port, 2
			}),
			want:   diagnosis{condition: v1alpha1.ConditionReachable, reason: "JumpHostUnreachable", words: []string{"the jump host refuses the connection", "spec.proxyJump.port"}},
			remedy: without(wrongPort.change(func(j *v1alpha1.ProxyJump) { j.Port = port })),
		}),
		wrongName.behind(cause{
			name: "jump-name", title: "The jump host's name does not exist",
			mend: "Correct `spec.proxyJump.host`; the cluster has to know that name.",
			breaks: wrongName.change(func(j *v1alpha1.ProxyJump) {
				host, j.Host = j.Host, "jump.example.com"
			}),
			want:   diagnosis{condition: v1alpha1.ConditionReachable, reason: "JumpHostUnreachable", words: []string{`"jump.example.com" of the jump host does not exist`, "spec.proxyJump.host"}},
			remedy: without(wrongName.change(func(j *v1alpha1.ProxyJump) { j.Host = host })),
		}),
		wrongKey.behind(cause{
			name: "jump-key", title: "The jump host has another host key",
			mend: "Compare the key in the message with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on the jump host; if it is that one, put it into `spec.proxyJump.hostKeys`.",
			breaks: func(p *patient) {
				wrongKey.change(func(j *v1alpha1.ProxyJump) { j.HostKeys = []string{p.HostKey()} })(p)
			},
			want: diagnosis{condition: v1alpha1.ConditionHostKeyVerified, reason: "JumpHostKeyNotAccepted", words: []string{"JUMP HOST CHANGED", "spec.proxyJump.hostKeys"}},
			remedy: func(p *patient, message string) {
				key := quotedKey.FindStringSubmatch(message)[1]
				wrongKey.change(func(j *v1alpha1.ProxyJump) { j.HostKeys = []string{key} })(p)
			},
		}),
		login.behind(cause{
			name: "jump-login", title: "The jump host does not accept the key",
			mend:   "Add the line in the message to `~jump/.ssh/authorized_keys` on the jump host. Nothing but forwarding is needed there: no shell, no Nix.",
			breaks: func(p *patient) { login.setKeys(p, "") },
			want:   diagnosis{condition: v1alpha1.ConditionAuthenticated, reason: "JumpHostLoginRefused", words: []string{"the jump host refuses the login as " + jumpUser, "the key of Secret " + jumpSecret}},
			remedy: func(p *patient, message string) { login.setKeys(p, quotedKey.FindStringSubmatch(message)[1]+"\n") },
		}),
		forwarding.behind(cause{
			name: "jump-forwarding", title: "The jump host does not forward",
			mend:   "Set `AllowTcpForwarding local` (or `yes`) in the jump host's sshd_config, for that user at least, and reload sshd.",
			breaks: forwarding.onJump("sed -i 's/^AllowTcpForwarding local/AllowTcpForwarding no/' /etc/ssh/lab_sshd_config" + reloadSSHD),
			want:   diagnosis{condition: v1alpha1.ConditionReachable, reason: "JumpHostRefusesForwarding", words: []string{"the jump host does not pass connections on", "AllowTcpForwarding"}},
			remedy: without(forwarding.onJump("sed -i 's/^AllowTcpForwarding no/AllowTcpForwarding local/' /etc/ssh/lab_sshd_config" + reloadSSHD)),
		}),
	}
}

func beyondJumpCauses() []cause {
	permit, refused, name := &farSite{}, &farSite{}, &farSite{}
	port := func(n int32) func(*patient) {
		return func(p *patient) {
			p.changeSpec(func(spec *v1alpha1.NixBuilderSpec) { spec.Endpoints[0].Port = n })
		}
	}
	var options, key string
	return []cause{
		permit.behind(cause{
			name: "jump-permitopen", title: "The jump host forwards to other addresses only",
			mend: "Correct `permitopen` in the key's line in authorized_keys, as the message shows it, or `PermitOpen` in sshd_config. Both compare host and port as they are written in `spec.endpoints`.",
			breaks: func(p *patient) {
				text := run(p.T, permit.jump, "cat "+jumpKeys)
				options, key, _ = strings.Cut(strings.TrimSpace(text), " ")
				permit.setKeys(p, strings.ReplaceAll(options, p.Address(), "192.0.2.1:22")+" "+key+"\n")
			},
			want: diagnosis{condition: v1alpha1.ConditionReachable, reason: "JumpHostRefusesForwarding", words: []string{"PermitOpen " + farInside + ":22"}},
			remedy: func(p *patient, message string) {
				options := regexp.MustCompile(`restrict,port-forwarding,permitopen="[^"]*"`).FindString(message)
				permit.setKeys(p, options+" "+key+"\n")
			},
		}),
		refused.behind(cause{
			name: "jump-target-refused", title: "The machine refuses the jump host's connection",
			mend:   "Start sshd on the machine, or correct `spec.endpoints[].port`.",
			breaks: func(p *patient) { unlimit(p, refused); port(2)(p) },
			want:   diagnosis{condition: v1alpha1.ConditionReachable, reason: "ConnectionRefused", words: []string{"refuses the jump host's connection"}},
			remedy: without(port(22)),
		}),
		name.behind(cause{
			name: "jump-target-name", title: "The jump host does not know the machine's name",
			means: "Behind a jump host names are looked up there, not in the cluster.",
			mend:  "Correct `spec.endpoints[].host`, or add the name to the DNS that the jump host uses, or to its `/etc/hosts`.",
			breaks: func(p *patient) {
				unlimit(p, name)
				p.changeSpec(func(spec *v1alpha1.NixBuilderSpec) { spec.Endpoints[0].Host = "linux-1.internal" })
			},
			want:   diagnosis{condition: v1alpha1.ConditionReachable, reason: "HostNameUnknown", words: []string{"the jump host, where names of machines are looked up", `"linux-1.internal"`}},
			remedy: without(name.onJump("echo " + farInside + " linux-1.internal >>/etc/hosts")),
		}),
	}
}

// unlimit lets the key for the jump host lead everywhere.
func unlimit(p *patient, f *farSite) {
	p.Helper()
	text := run(p.T, f.jump, "cat "+jumpKeys)
	f.setKeys(p, strings.ReplaceAll(text, fmt.Sprintf(",permitopen=%q", p.Address()), ""))
}
