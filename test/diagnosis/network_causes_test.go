// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// patientHost is the name by which machines are known to the cluster's DNS where a
// cause is about names.
const patientHost = "linux-1.example.com"

// networkCauses are those found before an SSH server answers.
func networkCauses() []cause {
	return append(nameCauses(), append(addressCauses(), answerCauses()...)...)
}

func nameCauses() []cause {
	setHost := func(host string) func(*v1alpha1.NixBuilderSpec) {
		return func(spec *v1alpha1.NixBuilderSpec) { spec.Endpoints[0].Host = host }
	}
	return []cause{
		{
			name: "name-unknown", title: "The host name does not exist", fromHere: nowhere,
			nixSays: "`ssh: Could not resolve hostname …: Name or service not known`.",
			mend:    "Correct `spec.endpoints[].host`. The name is looked up from the operator's pod, so names of the machines' own network may need an entry in the cluster's DNS.",
			prepare: func(p *patient) { p.site.names.set("linux-2.example.com", p.IP()) },
			breaks:  func(p *patient) { p.changeSpec(setHost("linxu-1.example.com")) },
			want: diagnosis{
				condition: v1alpha1.ConditionReachable, reason: "HostNameUnknown",
				words: []string{`"linxu-1.example.com" does not exist`, "correct spec.endpoints[].host"},
			},
			remedy: func(p *patient, _ string) { p.changeSpec(setHost("linux-2.example.com")) },
		},
		{
			name: "name-server", title: "The name server does not answer", fromHere: nowhere,
			nixSays: "`ssh: Could not resolve hostname …: Temporary failure in name resolution`.",
			mend:    "Look at the cluster's DNS, and at network policies that keep the operator from it.",
			prepare: func(p *patient) {
				p.site.names.set(patientHost, p.IP())
				p.host = patientHost
			},
			breaks: func(p *patient) { p.site.names.set(patientHost, "") },
			want: diagnosis{
				condition: v1alpha1.ConditionReachable, reason: "HostNameLookupFailed",
				words: []string{"no answer for", "the cluster's DNS"},
			},
			remedy: func(p *patient, _ string) { p.site.names.set(patientHost, p.IP()) },
		},
		{
			name: "denied", title: "The operator may not connect to the address", fromHere: nowhere,
			means:  "Loopback, link-local and metadata addresses are denied by default, so that nobody who may create builders reaches what listens there.",
			mend:   "Give the machine's own address in `spec.endpoints[].host`; who runs the operator can change `--denied-ranges`.",
			breaks: func(p *patient) { p.changeSpec(setHost("169.254.169.254")) },
			want: diagnosis{
				condition: v1alpha1.ConditionReachable, reason: "AddressDenied",
				words: []string{"169.254.0.0/16", "use another address"},
			},
			remedy: func(p *patient, _ string) { p.changeSpec(setHost(p.IP())) },
		},
	}
}

func addressCauses() []cause {
	setPort := func(port int) func(*v1alpha1.NixBuilderSpec) {
		return func(spec *v1alpha1.NixBuilderSpec) { spec.Endpoints[0].Port = int32(port) }
	}
	return []cause{
		{
			name: "sshd-down", title: "sshd is not running",
			means:   "The machine answers that nothing listens on the port, where an SSH server answered before.",
			nixSays: "`ssh: connect to host … port 22: Connection refused`, then `failed to start SSH connection` (before Nix 2.15 `unexpected end-of-file`).",
			mend:    "Start sshd on the machine; its log says why it ended.",
			breaks:  func(p *patient) { p.run(stopSSHD) },
			want: diagnosis{
				condition: v1alpha1.ConditionReachable, reason: "ConnectionRefused",
				words: []string{"which answered before", "start it there"},
			},
			remedy: func(p *patient, _ string) { p.run(startSSHD) },
		},
		{
			name: "wrong-port", title: "Nothing listens on the port",
			means:   "No SSH server was ever seen there.",
			nixSays: "the same.",
			mend:    "Correct `spec.endpoints[].port`, or start sshd.",
			breaks:  func(p *patient) { p.changeSpec(setPort(2022)) },
			want: diagnosis{
				condition: v1alpha1.ConditionReachable, reason: "ConnectionRefused",
				words: []string{"nothing listens there", "correct spec.endpoints[].port"},
			},
			remedy: func(p *patient, _ string) { p.changeSpec(setPort(p.Port())) },
		},
		{
			name: "no-route", title: "There is no route to the machine",
			nixSays: "`ssh: connect to host … port 22: No route to host`.",
			mend:    "Look at the network between the cluster and the machine, and at `spec.endpoints[].host`.",
			machine: func(opts *nixlab.BuilderOptions) { opts.Address = unroutable },
			breaks: func(p *patient) {
				p.network("address", "delete", p.IP()+"/32", "dev", "lo")
				p.network("route", "add", "unreachable", p.IP()+"/32")
			},
			want: diagnosis{
				condition: v1alpha1.ConditionReachable, reason: "HostUnreachable",
				words: []string{"no route", "look at the network"},
			},
			remedy: func(p *patient, _ string) {
				p.network("route", "delete", "unreachable", p.IP()+"/32")
				p.network("address", "add", p.IP()+"/32", "dev", "lo")
			},
		},
		{
			name: "black-hole", title: "No answer at all",
			means:   "The machine is off, or a firewall drops the connection without a word.",
			nixSays: "nothing for 135 seconds, for every single build, then `ssh: connect to host … port 22: Connection timed out`.",
			mend:    "Switch the machine on, or open port 22 of it to the operator's pod and to the pods that build.",
			machine: func(opts *nixlab.BuilderOptions) { opts.Address = switchable },
			breaks:  func(p *patient) { p.network("address", "delete", p.IP()+"/32", "dev", "lo") },
			want: diagnosis{
				condition: v1alpha1.ConditionReachable, reason: "ConnectTimeout",
				words: []string{"the machine is off, or a firewall drops the connection"},
			},
			remedy: func(p *patient, _ string) { p.network("address", "add", p.IP()+"/32", "dev", "lo") },
		},
	}
}

// answerCauses are those where something accepts the connection.
func answerCauses() []cause {
	another := func(p *patient, port int, serve func(net.Conn)) {
		p.listen(port, serve)
		p.changeSpec(func(spec *v1alpha1.NixBuilderSpec) { spec.Endpoints[0].Port = int32(port) })
	}
	back := func(p *patient, _ string) {
		p.changeSpec(func(spec *v1alpha1.NixBuilderSpec) { spec.Endpoints[0].Port = int32(p.Port()) })
	}
	return []cause{
		{
			name: "silent", title: "Something accepts the connection and says nothing",
			means:   "An SSH server greets first. What listens there is none, or it is behind something that accepts in its place, such as a load balancer.",
			nixSays: "nothing, for ever.",
			mend:    "Correct `spec.endpoints[].host` and `port`.",
			breaks:  func(p *patient) { another(p, 8022, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }) },
			want: diagnosis{
				condition: v1alpha1.ConditionReachable, reason: "SSHSilent",
				words: []string{"no SSH server speaks there", "correct host and port"},
			},
			remedy: back,
		},
		{
			name: "stopped", title: "The machine hangs", fromHere: "SSHSilent",
			means:   "Its kernel still accepts connections, but sshd, which answered before, does nothing: the machine is suspended in part, out of memory, or waits for its disk.",
			nixSays: "nothing, for ever.",
			mend:    "Look at the machine's console; restart it if nothing else helps.",
			breaks:  func(p *patient) { p.must(p.StopProcesses()) },
			want: diagnosis{
				condition: v1alpha1.ConditionReachable, reason: "SSHServerStopped",
				words: []string{"which answered before", "look at the machine's console"},
			},
			remedy: func(p *patient, _ string) { p.must(p.ContinueProcesses()) },
		},
		{
			name: "http", title: "A web server answers",
			nixSays: "`kex_exchange_identification: …`, then `failed to start SSH connection`.",
			mend:    "Correct `spec.endpoints[].host` and `port`.",
			breaks: func(p *patient) {
				server := httptest.NewServer(http.NotFoundHandler())
				p.Cleanup(server.Close)
				another(p, 80, func(c net.Conn) { relay(c, server.Listener.Addr().String()) })
			},
			want: diagnosis{
				condition: v1alpha1.ConditionReachable, reason: "NotAnSSHServer",
				words: []string{"HTTP/1.1 400 Bad Request", "correct host and port"},
			},
			remedy: back,
		},
		{
			name: "mail", title: "Another kind of server answers",
			nixSays: "the same.",
			mend:    "Correct `spec.endpoints[].host` and `port`.",
			breaks: func(p *patient) {
				another(p, 25, func(c net.Conn) {
					_, _ = io.WriteString(c, "220 mail.example.com ESMTP\r\n")
					_, _ = io.Copy(io.Discard, c)
				})
			},
			want: diagnosis{
				condition: v1alpha1.ConditionReachable, reason: "NotAnSSHServer",
				words: []string{"220 mail.example.com ESMTP", "correct host and port"},
			},
			remedy: back,
		},
	}
}

// listen has something else than sshd listen on the machine.
func (p *patient) listen(port int, serve func(net.Conn)) {
	p.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(p.IP(), fmt.Sprint(port)))
	if err != nil {
		p.Fatal(err)
	}
	done := make(chan struct{})
	p.Cleanup(func() {
		listener.Close()
		<-done
	})
	go func() {
		defer close(done)
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
}

// relay connects c with a server.
func relay(c net.Conn, address string) {
	server, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer server.Close()
	go func() { _, _ = io.Copy(server, c) }()
	_, _ = io.Copy(c, server)
}

// network changes the network of the tests.
func (p *patient) network(args ...string) {
	p.Helper()
	p.must(ip(args...))
}

func (p *patient) must(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

const (
	stopSSHD = `kill $(cat /run/sshd.pid) && while kill -0 $(cat /run/sshd.pid) 2>/dev/null; do sleep 0.02; done`
	// startSSHD starts it as a service, which belongs to nobody who logs in.
	startSSHD = `
before=$(grep -c '^Server listening' /var/log/lab/sshd.log)
setsid /usr/sbin/sshd -D -f /etc/ssh/lab_sshd_config -E /var/log/lab/sshd.log </dev/null >/dev/null 2>&1 &
echo $! >/run/sshd.pid` + awaitSSHD
	awaitSSHD = `
for i in $(seq 500); do
	[ $(grep -c '^Server listening' /var/log/lab/sshd.log) -gt $before ] && exit 0
	sleep 0.02
done
exit 1`
)
