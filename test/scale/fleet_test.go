// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scale

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
	"nixbuilder.io/nix-builder-operator/test/builders"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

const (
	namespaces = 20
	// maxBuilders is how many NixBuilders share the machines, where there are as many.
	maxBuilders = 40
	// holeTimeout is after how long without an answer on the loopback interface
	// there will be none.
	holeTimeout = 300 * time.Millisecond
)

// fleet is all machines that are probed.
type fleet struct {
	machines []*machine
	key      []byte // logs in to all of them
}

// machine is an SSH server on a loopback address of its own, with a host key of
// its own. The Nix behind is the same on all.
type machine struct {
	name string
	host string
	port int32
	*sshtest.Server
	listener net.Listener
	nix      *daemontest.Daemon
	hole     bool

	mu sync.Mutex
	// logins are the times at which nix-daemon was started, which a probe does
	// once.
	logins []time.Time
}

// newFleet starts n machines.
func newFleet(t *testing.T, n int) *fleet {
	t.Helper()
	f := &fleet{}
	var public ssh.PublicKey
	f.key, public = sshtest.NewKeyFile(t)
	nix := daemontest.New(daemontest.Options{Trust: daemon.Trusted})
	t.Cleanup(nix.Close)
	for i := range n {
		m := &machine{name: fmt.Sprintf("m-%d", i), host: fmt.Sprintf("127.77.%d.%d", i/250, 1+i%250), nix: nix}
		listener, err := net.Listen("tcp", net.JoinHostPort(m.host, "0"))
		if err != nil {
			t.Fatal(err)
		}
		m.listener = listener
		m.port = int32(listener.Addr().(*net.TCPAddr).Port)
		m.Server = sshtest.Serve(t, listener, sshtest.NewKey(t), sshtest.Behavior{
			Exec: sshtest.NixShell(m.serve), AuthorizedKeys: []ssh.PublicKey{public},
		})
		f.machines = append(f.machines, m)
	}
	return f
}

// serve runs a connection to nix-daemon.
func (m *machine) serve(conn io.ReadWriteCloser) error {
	m.mu.Lock()
	m.logins = append(m.logins, time.Now())
	m.mu.Unlock()
	return m.nix.Serve(conn)
}

func namespaceName(i int) string { return fmt.Sprintf("scale-%d", i) }

// create makes the API objects, all at once.
func (f *fleet) create(t *testing.T, admin client.Client, interval time.Duration) {
	t.Helper()
	create := func(object client.Object) {
		ctx, cancel := context.WithTimeout(t.Context(), requestTimeout)
		defer cancel()
		if err := admin.Create(ctx, object); err != nil {
			t.Fatal(err)
		}
	}
	for i := range namespaces {
		create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespaceName(i)}})
		create(&corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: namespaceName(i), Name: builders.DefaultSecret,
				Labels: map[string]string{v1alpha1.CredentialLabel: "true"},
			},
			Type: corev1.SecretTypeSSHAuth,
			Data: map[string][]byte{corev1.SSHAuthPrivateKey: f.key},
		})
	}
	count := min(maxBuilders, len(f.machines))
	for i := range count {
		builder := builders.MakeNixBuilder(fmt.Sprintf("builder-%d", i)).Namespace(namespaceName(i % namespaces))
		for _, m := range f.machines[i*len(f.machines)/count : (i+1)*len(f.machines)/count] {
			builder.EndpointWith(v1alpha1.Endpoint{
				Name: m.name, Host: m.host, Port: m.port, HostKeys: []string{sshconn.AuthorizedKey(m.HostKey())},
			})
		}
		create(builder.Change(func(b *v1alpha1.NixBuilder) { setPace(&b.Spec.Probe, interval) }).Obj())
	}
}

// setPace leaves the defaults as they are where the interval is theirs, and
// otherwise makes black holes be found out as fast as can be.
func setPace(p *v1alpha1.Probe, interval time.Duration) {
	if seconds := int32(interval / time.Second); seconds != p.IntervalSeconds {
		p.IntervalSeconds, p.TimeoutSeconds, p.FailureThreshold = seconds, min(seconds, p.TimeoutSeconds), 1
	}
}

// kept counts the connections that are open between probes.
func (f *fleet) kept() int {
	n := 0
	for _, m := range f.machines {
		n += m.Open()
	}
	return n
}

// dig makes one machine in share a black hole, and returns how many that are.
func (f *fleet) dig(t *testing.T, share int) int {
	t.Helper()
	var group errgroup.Group
	holes := 0
	for i, m := range f.machines {
		if i%share != share-1 {
			continue
		}
		holes++
		m.hole = true
		group.Go(func() error { return m.swallow(t) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	return holes
}

// swallow has the machine fall silent on connections that are open, and the kernel drop
// whatever is sent to open one, as it does where a listener has no room for another one
// and accepts none.
func (m *machine) swallow(t *testing.T) error {
	_ = m.listener.Close()
	m.Freeze()
	listener, err := net.Listen("tcp", m.Addr())
	if err != nil {
		return err
	}
	t.Cleanup(func() { _ = listener.Close() })
	raw, err := listener.(*net.TCPListener).SyscallConn()
	if err != nil {
		return err
	}
	var shrunk error
	if err := raw.Control(func(fd uintptr) { shrunk = syscall.Listen(int(fd), 0) }); err != nil || shrunk != nil {
		return fmt.Errorf("shrink the backlog of %s: %w", m.Addr(), errors.Join(err, shrunk))
	}
	for range 100 {
		conn, err := net.DialTimeout("tcp", m.Addr(), holeTimeout)
		var failure net.Error
		if errors.As(err, &failure) && failure.Timeout() {
			return nil
		}
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	return fmt.Errorf("%s goes on to accept connections", m.Addr())
}

// loginsIn counts the probes of a period that came as far as logging in.
func (f *fleet) loginsIn(from, to time.Time) int {
	n := 0
	for _, m := range f.machines {
		n += len(m.loginsIn(from, to))
	}
	return n
}

// gapsIn returns the times between consecutive probes of a period, of machines
// that are no black holes.
func (f *fleet) gapsIn(from, to time.Time) []time.Duration {
	var gaps []time.Duration
	for _, m := range f.machines {
		if m.hole {
			continue
		}
		logins := m.loginsIn(from, to)
		for i := 1; i < len(logins); i++ {
			gaps = append(gaps, logins[i].Sub(logins[i-1]))
		}
	}
	return gaps
}

// firstLogins returns, for each machine that has one, the first probe since then.
func (f *fleet) firstLogins(since time.Time) []time.Time {
	var first []time.Time
	for _, m := range f.machines {
		if logins := m.loginsIn(since, time.Now()); len(logins) > 0 {
			first = append(first, logins[0])
		}
	}
	return first
}

func (m *machine) loginsIn(from, to time.Time) []time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	var in []time.Time
	for _, at := range m.logins {
		if !at.Before(from) && at.Before(to) {
			in = append(in, at)
		}
	}
	return in
}
