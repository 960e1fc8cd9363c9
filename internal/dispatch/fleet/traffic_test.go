// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"bytes"
	"io"
	"testing"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

func TestTrafficIsCounted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, _ := newFleet(t, newMachine(t, daemontest.Options{}))
		const size = 1 << 20
		info, nar := daemontest.FileInfo(pathA, bytes.Repeat([]byte("x"), size))
		s := open(t, f)
		if err := s.AddMultipleToStore(t.Context(), one(info, bytes.NewReader(nar)), nil); err != nil {
			t.Fatal(err)
		}
		s.Close()
		uploaded := f.Stats()[0]
		s = open(t, f)
		defer s.Close()
		if err := s.NARFromPath(t.Context(), pathA, io.Discard); err != nil {
			t.Fatal(err)
		}
		downloaded := f.Stats()[0]
		const protocol = 64 << 10 // at most, around the content
		for what, n := range map[string]uint64{"sent": uploaded.SentBytes, "received": downloaded.ReceivedBytes - uploaded.ReceivedBytes} {
			if n < size || n > size+protocol {
				t.Errorf("%d bytes %s, want about %d", n, what, size)
			}
		}
		if uploaded.ReceivedBytes > protocol {
			t.Errorf("%d bytes received while %d were sent", uploaded.ReceivedBytes, size)
		}
	})
}
