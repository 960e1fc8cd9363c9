// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package spool

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestUsage(t *testing.T) {
	t.Parallel()
	s := newStore(t, 30)
	put(t, s, "a", 20).Release()
	put(t, s, "b", 10).Release()
	pin := put(t, s, "c", 15) // instead of a
	defer pin.Release()
	tooMuch, _ := content("d", 16)
	if _, err := s.Create(tooMuch); !errors.Is(err, ErrNoRoom) {
		t.Fatalf("error = %v, want ErrNoRoom", err)
	}
	broken, nar := content("e", 5)
	w, err := s.Create(broken)
	if err != nil {
		t.Fatal(err)
	}
	w.file.Close()
	if _, err := w.Write(nar); err == nil {
		t.Fatal("a closed file was written to")
	}
	w.Abort()
	want := Usage{Paths: 2, Pinned: 1, Bytes: 25, MaxBytes: 30, Evictions: 1, Refusals: 1, Failures: 1}
	if diff := cmp.Diff(want, s.Usage()); diff != "" {
		t.Errorf("usage (-want +got):\n%s", diff)
	}
}
