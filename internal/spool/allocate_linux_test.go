// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package spool

import (
	"errors"
	"testing"
)

func TestFullDiskIsNoRoom(t *testing.T) {
	t.Parallel()
	s := newStore(t, 1<<62)
	info, _ := content("a", 1)
	info.NARSize = 1 << 60 // more than any disk
	if _, err := s.Create(info); !errors.Is(err, ErrNoRoom) {
		t.Errorf("error = %v, want ErrNoRoom", err)
	}
	if u := s.Usage(); u.Bytes != 0 || u.Failures != 1 || files(t, s) != 0 {
		t.Errorf("left over: %+v, %d files", u, files(t, s))
	}
	put(t, s, "b", 2<<20).Release()
}
