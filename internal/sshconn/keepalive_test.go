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

// TestVigil: what is concluded from silence, on time and after this side was stopped.
func TestVigil(t *testing.T) {
	t.Parallel()
	type look struct {
		at, heard time.Duration
		want      sign
		due       time.Duration
	}
	tests := map[string]struct {
		missed int
		looks  []look
	}{
		"silence":                {2, []look{{10, 0, silent, 20}, {20, 0, silent, 30}, {30, 0, dead, 30}}},
		"an answer":              {1, []look{{10, 0, silent, 20}, {20, 11, alive, 21}, {21, 11, silent, 31}, {31, 11, dead, 31}}},
		"a byte now and then":    {1, []look{{10, 9, alive, 19}, {19, 18, alive, 28}}},
		"a little late":          {1, []look{{14, 0, silent, 24}, {28, 0, dead, 24}}},
		"stopped before it asks": {1, []look{{90, 0, silent, 100}, {100, 91, alive, 101}}},
		"stopped before it asks, and nobody is there":     {1, []look{{90, 0, silent, 100}, {100, 0, dead, 100}}},
		"stopped after it has asked":                      {1, []look{{10, 0, silent, 20}, {90, 0, alive, 100}, {100, 91, alive, 101}}},
		"stopped after it has asked, and nobody is there": {1, []look{{10, 0, silent, 20}, {90, 0, alive, 100}, {100, 0, dead, 100}}},
		"stopped after it was heard":                      {1, []look{{90, 5, alive, 15}, {90, 5, silent, 100}, {100, 5, dead, 100}}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			began := time.Unix(0, 0)
			at := func(seconds time.Duration) time.Time { return began.Add(seconds * time.Second) }
			v := newVigil(Keepalive{Interval: 10 * time.Second, MaxMissed: tc.missed}, began)
			for _, look := range tc.looks {
				if got := v.look(at(look.at), at(look.heard)); got != look.want || !v.due.Equal(at(look.due)) {
					t.Errorf("at %d: %d, due at %d; want %d, %d", look.at, got, v.due.Unix(), look.want, look.due)
				}
			}
		})
	}
}
