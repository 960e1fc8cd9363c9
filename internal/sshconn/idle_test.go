// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshconn

import (
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// TestIdle: a connection that is watched only once it idles ends like others, and where
// a peer goes on to send what nobody asked for.
func TestIdle(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		perSecond int // bytes that a command of the peer prints
		happens   func(*sshtest.Server)
		want      Kind // empty: it lives on
	}{
		"idle":     {},
		"a little": {perSecond: 1000},
		"frozen":   {happens: (*sshtest.Server).Freeze, want: KindKeepalive},
		"flooded":  {perSecond: 1 << 20, want: KindProtocol},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				network := sshtest.NewNetwork()
				server := sshtest.Serve(t, network.Listen("a:22"), sshtest.NewKey(t), sshtest.Behavior{
					Exec: func(_ string, stdio sshtest.Stdio) int {
						for {
							if _, err := io.WriteString(stdio.Stdout, strings.Repeat(".", tc.perSecond/10)); err != nil {
								return 0
							}
							select {
							case <-stdio.Done:
								return 0
							case <-time.After(100 * time.Millisecond):
							}
						}
					},
				})
				conn, err := Dial(t.Context(), Config{
					Address: "a:22", User: "nixt", Signers: []ssh.Signer{sshtest.NewKey(t)}, NetDial: network.Dial,
					HostKeys: HostKeyPolicy{Pinned: []ssh.PublicKey{server.HostKey()}},
				})
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = conn.Close() }()
				session, err := conn.Start(t.Context(), "print")
				if err != nil {
					t.Fatal(err)
				}
				go func() { _, _ = io.Copy(io.Discard, session) }()
				time.Sleep(time.Minute) // nobody watches
				conn.KeepAlive(Keepalive{Interval: time.Second, MaxMissed: 1, MaxBytes: 64 << 10})
				if tc.happens != nil {
					tc.happens(server)
				}
				time.Sleep(5 * time.Second)
				if got := KindOf(conn.Err()); got != tc.want {
					t.Errorf("it ended as %q, want %q", got, tc.want)
				}
				server.Thaw()
			})
		})
	}
}

// TestIdleBehindNoisyJumpHost: what the jump host itself says counts, too, not only what
// it passes on.
func TestIdleBehindNoisyJumpHost(t *testing.T) {
	t.Parallel()
	jump, server := sshtest.New(t, sshtest.Behavior{}), sshtest.New(t, sshtest.Behavior{})
	noisy := &ssh.ServerConfig{NoClientAuth: true}
	key := sshtest.NewKey(t)
	noisy.AddHostKey(key)
	config := configThrough(t, jump, server)
	config.Jump.HostKeys = HostKeyPolicy{Pinned: []ssh.PublicKey{key.PublicKey()}}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	config.Jump.Address = listener.Addr().String()
	go func() {
		if its, err := listener.Accept(); err == nil {
			shout(its, noisy)
		}
	}()
	conn := dialWell(t, config)
	conn.KeepAlive(Keepalive{Interval: 200 * time.Millisecond, MaxMissed: 100, MaxBytes: 64 << 10})
	select {
	case <-conn.Done():
		if got := KindOf(conn.Err()); got != KindProtocol {
			t.Errorf("it ended as %q", got)
		}
	case <-time.After(10 * time.Second):
		t.Error("it goes on")
	}
}

// shout is a jump host that passes one connection on and goes on to ask for what nobody
// knows, until it is left alone.
func shout(transport net.Conn, config *ssh.ServerConfig) {
	conn, channels, requests, err := ssh.NewServerConn(transport, config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for incoming := range channels {
		var wanted struct {
			Host       string
			Port       uint32
			OriginHost string
			OriginPort uint32
		}
		_ = ssh.Unmarshal(incoming.ExtraData(), &wanted)
		machine, err := direct(net.JoinHostPort(wanted.Host, strconv.Itoa(int(wanted.Port))))
		if err != nil {
			return
		}
		channel, requests, err := incoming.Accept()
		if err != nil {
			return
		}
		go ssh.DiscardRequests(requests)
		go func() {
			_, _ = io.Copy(machine, channel)
			_ = machine.Close()
		}()
		go func() { _, _ = io.Copy(channel, machine) }()
		go func() {
			for err == nil {
				_, _, err = conn.SendRequest("noise", false, make([]byte, 16<<10))
			}
		}()
	}
}
