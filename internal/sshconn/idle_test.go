// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshconn

import (
	"io"
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
