// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

// What makes no sense is counted once, by who sent it; what ends early is not.
func TestBreachesAreCounted(t *testing.T) {
	header := "nxbC\x01\x00"
	tests := map[string]struct {
		// raw is sent instead of a helper's header.
		raw  string
		sent [][]byte
		want int
	}{
		"nothing":                   {raw: "", sent: [][]byte{nil}},
		"another program":           {raw: "GET / HTTP/1.1\r\n\r\n", want: 1},
		"another version's helper":  {raw: "nxbC\x63\x00\x2f\x00" + strings.Repeat("x", 47), want: 1},
		"header of a giant":         {raw: header + "\xff\xff", want: 1},
		"header cut short":          {raw: header},
		"settings":                  {sent: [][]byte{greeting(0x123), words(19, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0)}},
		"an operation not offered":  {sent: [][]byte{greeting(0x123), words(20, 0, 0)}, want: 1},
		"a count beyond all bounds": {sent: [][]byte{greeting(0x123), words(31, 1<<62)}, want: 1},
		"a bad frame":               {sent: [][]byte{greeting(0x123), words(44, 0, 1, 8, 1<<62, 0)}, want: 1},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, rigOptions{builders: []*machine{newMachine(t, "one", daemontest.Options{})}})
				if len(tc.sent) > 0 && tc.sent[0] != nil {
					converse(t, r.dialClient(1, "x86_64-linux.0"), tc.sent...)
				} else {
					conn, err := r.network.Dial(t.Context(), "unix", address)
					if err != nil {
						t.Fatal(err)
					}
					if _, err := conn.Write([]byte(tc.raw)); err != nil {
						t.Fatal(err)
					}
					conn.Close()
				}
				synctest.Wait()
				got := r.events.all()
				want := slices.Repeat([]string{"protocol broken by client"}, tc.want)
				if !slices.Equal(got, want) {
					t.Errorf("events %q, want %q; log:\n%s", got, want, r.log.String())
				}
			})
		})
	}
}
