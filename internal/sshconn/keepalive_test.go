// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshconn

import (
	"io"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// TestKeepalive runs on fake time over a network in memory.
func TestKeepalive(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		behavior sshtest.Behavior
		disturb  func(*sshtest.Server)
		// wantLost is how long after the disturbance the connection ends, to the
		// next ten seconds; zero where it lives on.
		wantLost time.Duration
	}{
		"answers": {},
		"frozen": {
			disturb: (*sshtest.Server).Freeze, wantLost: 40 * time.Second,
		},
		"frozen for a while": {
			disturb: func(s *sshtest.Server) {
				s.Freeze()
				time.AfterFunc(29*time.Second, s.Thaw)
			},
		},
		"answers nothing, but is heard": {
			behavior: sshtest.Behavior{
				Fault: sshtest.FaultIgnoreGlobal,
				Exec: func(_ string, stdio sshtest.Stdio) int {
					for {
						if _, err := io.WriteString(stdio.Stdout, "."); err != nil {
							return 0
						}
						time.Sleep(35 * time.Second)
					}
				},
			},
		},
		"answers nothing": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultIgnoreGlobal, Exec: echo},
			disturb:  func(*sshtest.Server) {}, wantLost: 40 * time.Second,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				if tc.behavior.Exec == nil {
					tc.behavior.Exec = echo
				}
				network := sshtest.NewNetwork()
				server := sshtest.Serve(t, network.Listen("b:22"), sshtest.NewKey(t), tc.behavior)
				conn := dialWell(t, Config{
					Address: "b:22", User: "nixt", Signers: []ssh.Signer{sshtest.NewKey(t)},
					HostKeys: HostKeyPolicy{FirstUse: true}, NetDial: network.Dial,
					Keepalive: Keepalive{Interval: 10 * time.Second, MaxMissed: 3},
				})
				session := start(t, conn, "x")
				go func() { _, _ = io.Copy(io.Discard, session) }()
				began := time.Now()
				if tc.disturb != nil {
					tc.disturb(server)
				}
				select {
				case <-conn.Done():
					got := time.Since(began)
					if tc.wantLost == 0 || got > tc.wantLost || KindOf(conn.Err()) != KindKeepalive {
						t.Errorf("ended after %v: %v", got, conn.Err())
					}
				case <-time.After(10 * time.Minute):
					if tc.wantLost != 0 {
						t.Error("still there after ten minutes")
					}
				}
				server.Thaw()
				_ = conn.Close()
				server.Close()
			})
		})
	}
}
