// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshconn

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// direct passes connections on to where they want to go.
func direct(address string) (net.Conn, error) { return net.Dial("tcp", address) }

// configThrough is how to get to server through jump.
func configThrough(tb testing.TB, jump, server *sshtest.Server) Config {
	tb.Helper()
	config, hop := configFor(tb, server), configFor(tb, jump)
	config.NetDial = func(context.Context, string, string) (net.Conn, error) {
		tb.Error("the target was dialed past the jump host")
		return nil, errors.ErrUnsupported
	}
	config.Jump = &hop
	return config
}

func TestJump(t *testing.T) {
	t.Parallel()
	jump := sshtest.New(t, sshtest.Behavior{Forward: direct})
	server := sshtest.New(t, sshtest.Behavior{Exec: echo})
	conn := dialWell(t, configThrough(t, jump, server))
	session := start(t, conn, "x")
	const size = 4 << 20 // more than all windows and buffers on the way hold
	go func() {
		_, _ = io.Copy(session, io.LimitReader(zeros{}, size))
		_ = session.CloseWrite()
	}()
	if n, err := io.Copy(io.Discard, session); n != size || err != nil {
		t.Errorf("%d bytes came back, %v; want %d", n, err, size)
	}
	if got := conn.HostKey(); string(got.Marshal()) != string(server.HostKey().Marshal()) {
		t.Error("the host key is not that of the machine behind the jump host")
	}
	// A second connection has a second one to the jump host.
	dialWell(t, configThrough(t, jump, server))
	if jump.Accepted() != 2 {
		t.Errorf("the jump host has accepted %d connections, want 2", jump.Accepted())
	}
}

// TestJumpFaults tells what is wrong with the jump host from what is wrong behind it.
func TestJumpFaults(t *testing.T) {
	t.Parallel()
	failing := func(text string) sshtest.Forward {
		return func(string) (net.Conn, error) { return nil, errors.New(text) }
	}
	tests := map[string]struct {
		jump, server sshtest.Behavior
		change       func(*Config)
		wantKind     Kind
		wantStep     Step
		wantJump     bool
	}{
		"jump host closes at once": {
			jump:     sshtest.Behavior{Fault: sshtest.FaultHangUp},
			wantKind: KindTurnedAway, wantStep: StepIdentify, wantJump: true,
		},
		"jump host address denied": {
			change:   func(c *Config) { c.Jump.NetDial = NewDialer(DefaultDenied()) },
			wantKind: KindDenied, wantStep: StepConnect, wantJump: true,
		},
		"jump host has another key": {
			change: func(c *Config) {
				c.Jump.HostKeys = HostKeyPolicy{Pinned: []ssh.PublicKey{sshtest.NewKey(t).PublicKey()}}
			},
			wantKind: KindHostKeyChanged, wantStep: StepKeyExchange, wantJump: true,
		},
		"jump host key not given": {
			change:   func(c *Config) { c.Jump.HostKeys = HostKeyPolicy{} },
			wantKind: KindHostKeyUnknown, wantStep: StepKeyExchange, wantJump: true,
		},
		"jump host refuses the key": {
			jump:     sshtest.Behavior{AuthorizedKeys: []ssh.PublicKey{}},
			wantKind: KindAuthRefused, wantStep: StepLogin, wantJump: true,
		},
		"jump host without a key to log in": {
			change:   func(c *Config) { c.Jump.Signers = nil },
			wantKind: KindNoUsableKey, wantStep: StepLogin, wantJump: true,
		},
		"forwarding not allowed": {
			jump:     sshtest.Behavior{Forward: func(string) (net.Conn, error) { return nil, sshtest.Prohibited() }},
			wantKind: KindForwardRefused, wantStep: StepForward,
		},
		"name unknown there": {
			jump:     sshtest.Behavior{Forward: failing("Name or service not known")},
			wantKind: KindNameUnknown, wantStep: StepForward,
		},
		"name server away there": {
			jump:     sshtest.Behavior{Forward: failing("Temporary failure in name resolution")},
			wantKind: KindNameLookup, wantStep: StepForward,
		},
		"refused there":    {jump: sshtest.Behavior{Forward: failing("Connection refused")}, wantKind: KindRefused, wantStep: StepForward},
		"timed out there":  {jump: sshtest.Behavior{Forward: failing("Connection timed out")}, wantKind: KindTimeout, wantStep: StepForward},
		"no route there":   {jump: sshtest.Behavior{Forward: failing("No route to host")}, wantKind: KindUnreachable, wantStep: StepForward},
		"something there":  {jump: sshtest.Behavior{Forward: failing("Gremlins")}, wantKind: KindUnreachable, wantStep: StepForward},
		"no port":          {change: func(c *Config) { c.Address = "host" }, wantKind: KindUnreachable, wantStep: StepForward},
		"port not in use":  {change: func(c *Config) { c.Address = "host:99999" }, wantKind: KindUnreachable, wantStep: StepForward},
		"machine hangs up": {server: sshtest.Behavior{Fault: sshtest.FaultHangUp}, wantKind: KindTurnedAway, wantStep: StepIdentify},
		"machine refuses the key": {
			server:   sshtest.Behavior{AuthorizedKeys: []ssh.PublicKey{}},
			wantKind: KindAuthRefused, wantStep: StepLogin,
		},
		"machine silent": {
			server: sshtest.Behavior{Fault: sshtest.FaultSilent}, change: func(c *Config) { c.Timeout = shortTimeout },
			wantKind: KindSilent, wantStep: StepIdentify,
		},
		"machine stalled": {
			server: sshtest.Behavior{Fault: sshtest.FaultDead}, change: func(c *Config) { c.Timeout = shortTimeout },
			wantKind: KindStalled, wantStep: StepIdentify,
		},
		"machine stops at login": {
			server: sshtest.Behavior{Fault: sshtest.FaultStopAtLogin}, change: func(c *Config) { c.Timeout = shortTimeout },
			wantKind: KindTimeout, wantStep: StepLogin,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.jump.Forward == nil {
				tc.jump.Forward = direct
			}
			jump, server := sshtest.New(t, tc.jump), sshtest.New(t, tc.server)
			config := configThrough(t, jump, server)
			if tc.change != nil {
				tc.change(&config)
			}
			conn, err := Dial(t.Context(), config)
			if err == nil {
				_ = conn.Close()
				t.Fatal("Dial succeeded")
			}
			got := asError(t, err)
			if got.Kind != tc.wantKind || got.Step != tc.wantStep || got.JumpHost != tc.wantJump {
				t.Errorf("got kind %q at %q, at the jump host: %v; want %q at %q, %v (%v)",
					got.Kind, got.Step, got.JumpHost, tc.wantKind, tc.wantStep, tc.wantJump, err)
			}
			wantAddress := config.Address
			if tc.wantJump {
				wantAddress = jump.Addr()
			}
			if got.Address != wantAddress {
				t.Errorf("the address is %q, want %q", got.Address, wantAddress)
			}
			if tc.wantJump != strings.Contains(err.Error(), "jump host "+jump.Addr()) {
				t.Errorf("the text is %q", err)
			}
		})
	}
}

// TestNotForwarded: what kind of trouble a jump host means by its refusal.
func TestNotForwarded(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		reason  ssh.RejectionReason
		message string
		want    Kind
	}{
		"forbidden":           {ssh.Prohibited, "open failed", KindForwardRefused},
		"no such thing":       {ssh.UnknownChannelType, "", KindForwardRefused},
		"too busy":            {ssh.ResourceShortage, "too many channels", KindUnreachable},
		"nobody listens":      {ssh.ConnectionFailed, "Connection refused", KindRefused},
		"without a reason":    {ssh.ConnectionFailed, "", KindUnreachable},
		"in words of its own": {ssh.ConnectionFailed, "no luck", KindUnreachable},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := (&Conn{}).notForwarded(&ssh.OpenChannelError{Reason: tc.reason, Message: tc.message}); got.Kind != tc.want || got.JumpHost {
				t.Errorf("got %+v, want %q", got, tc.want)
			}
		})
	}
}

// A machine that does not answer the jump host is given up after one step's time, and
// so is a jump host that answers nothing any more.
func TestJumpTimeouts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		network, over := sshtest.NewNetwork(), make(chan struct{})
		defer close(over)
		key := sshtest.NewKey(t)
		jump := sshtest.Serve(t, network.Listen("jump:22"), key, sshtest.Behavior{Forward: func(string) (net.Conn, error) {
			<-over
			return nil, os.ErrClosed
		}})
		hop := Config{
			Address: "jump:22", Signers: []ssh.Signer{key}, NetDial: network.Dial, Timeout: 10 * time.Second,
			HostKeys: HostKeyPolicy{Pinned: []ssh.PublicKey{key.PublicKey()}},
		}
		config := hop
		config.Address, config.Jump = "builder:22", &hop
		began := time.Now()
		_, err := Dial(t.Context(), config)
		if got := asError(t, err); got.Kind != KindTimeout || got.Step != StepForward || got.JumpHost {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("it took %v", took)
		}
		jump.Freeze()
		_, err = Dial(t.Context(), config)
		if got := asError(t, err); got.Kind != KindStalled || !got.JumpHost {
			t.Errorf("got %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = Dial(ctx, config)
		if got := asError(t, err); got.Kind != KindTimeout || !got.JumpHost {
			t.Errorf("got %v", err)
		}
	})
}

// The end of either connection ends the other, and says which it was.
func TestJumpLost(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		end      func(jump, server *sshtest.Server)
		wantJump bool
	}{
		"jump host gone": {end: func(jump, _ *sshtest.Server) { jump.CloseConnections() }, wantJump: true},
		"machine gone":   {end: func(_, server *sshtest.Server) { server.CloseConnections() }},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			passed := make(chan net.Conn, 1)
			jump := sshtest.New(t, sshtest.Behavior{Forward: func(address string) (net.Conn, error) {
				conn, err := direct(address)
				passed <- conn
				return conn, err
			}})
			server := sshtest.New(t, sshtest.Behavior{Exec: echo})
			conn := dialWell(t, configThrough(t, jump, server))
			session := start(t, conn, "x")
			tc.end(jump, server)
			<-conn.Done()
			_, err := session.Read(make([]byte, 1))
			if KindOf(err) != KindLost || strings.Contains(err.Error(), "jump host "+jump.Addr()) != tc.wantJump {
				t.Errorf("Read: %v", err)
			}
			_ = conn.Close()
			// The jump host lets go of the machine, too.
			_, _ = io.Copy(io.Discard, <-passed)
		})
	}
}

// A jump host that freezes is noticed like a machine that does.
func TestJumpFreezes(t *testing.T) {
	t.Parallel()
	jump, server := sshtest.New(t, sshtest.Behavior{Forward: direct}), sshtest.New(t, sshtest.Behavior{Exec: echo})
	config := configThrough(t, jump, server)
	config.Keepalive = Keepalive{Interval: 100 * time.Millisecond, MaxMissed: 2}
	conn := dialWell(t, config)
	jump.Freeze()
	<-conn.Done()
	if KindOf(conn.Err()) != KindKeepalive {
		t.Errorf("got %v", conn.Err())
	}
}

// newTunnel connects to an address through a jump host.
func newTunnel(tb testing.TB, forward sshtest.Forward) (net.Conn, *sshtest.Server) {
	tb.Helper()
	jump := sshtest.New(tb, sshtest.Behavior{Forward: forward})
	outer := dialWell(tb, configFor(tb, jump))
	conn, failure := outer.tunnel(tb.Context(), "192.0.2.1:22")
	if failure != nil {
		tb.Fatal(failure)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	return conn, jump
}

func TestTunnelDeadlines(t *testing.T) {
	t.Parallel()
	near, far := net.Pipe()
	defer near.Close()
	conn, _ := newTunnel(t, func(string) (net.Conn, error) { return far, nil })
	read := func(at time.Time) error {
		t.Helper()
		if err := conn.SetReadDeadline(at); err != nil {
			t.Fatal(err)
		}
		_, err := conn.Read(make([]byte, 1))
		return err
	}
	if err := read(time.Now().Add(10 * time.Millisecond)); !isTimeout(err) {
		t.Errorf("with a deadline soon: %v", err)
	}
	if err := read(time.Now().Add(-time.Second)); !isTimeout(err) {
		t.Errorf("with one in the past: %v", err)
	}
	go func() { _, _ = near.Write([]byte("x")) }()
	if err := read(time.Time{}); err != nil {
		t.Errorf("without: %v", err)
	}
	// Nobody reads: the buffers fill up.
	_ = conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := io.Copy(conn, zeros{}); !isTimeout(err) {
		t.Errorf("Write: %v", err)
	}
	_ = conn.Close()
	if err := read(time.Time{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := conn.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestTunnelHalfClose(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		}
	}()
	conn, jump := newTunnel(t, func(string) (net.Conn, error) { return direct(listener.Addr().String()) })
	_, _ = conn.Write([]byte("hello"))
	_ = conn.(interface{ CloseWrite() error }).CloseWrite()
	if got, err := io.ReadAll(conn); string(got) != "hello" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if conn.RemoteAddr().String() != jump.Addr() || netip.MustParseAddrPort(conn.LocalAddr().String()).Addr() != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("addresses %v, %v", conn.LocalAddr(), conn.RemoteAddr())
	}
}
