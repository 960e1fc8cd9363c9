// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package spool

import (
	"io"
	"testing"
)

func TestForget(t *testing.T) {
	t.Parallel()
	s := newStore(t, 1<<20)
	pin := put(t, s, "a", 100)
	path, hash := pin.Info().Path, pin.Info().NARHash
	s.Forget(path, hash)
	if !has(s, "a") {
		t.Fatal("forgotten although it is the one wanted")
	}
	s.Forget(path, "")
	if has(s, "a") {
		t.Fatal("still found")
	}
	nar, err := pin.Open()
	if err != nil {
		t.Fatalf("one who has pinned it: %v", err)
	}
	defer nar.Close()
	if n, err := io.Copy(io.Discard, nar); err != nil || n == 0 {
		t.Errorf("%d bytes, %v", n, err)
	}

	// The new one lives beside the old one.
	next := put(t, s, "a", 200)
	if got := files(t, s); got != 2 {
		t.Errorf("%d files, want both", got)
	}
	pin.Release()
	if got := files(t, s); got != 1 || !has(s, "a") {
		t.Errorf("%d files after the last use of the old one", got)
	}
	next.Release()
	s.Forget(path, "")
	s.Forget(path, "")
	if u := s.Usage(); files(t, s) != 0 || u.Bytes != 0 || u.Paths != 0 || u.Pinned != 0 {
		t.Errorf("left: %+v", u)
	}
}
