// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/dispatch/fleet"
	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

// edit is something done to what a builder says, once so many bytes have passed.
type edit struct {
	offset int
	insert []byte
	drop   int
	delay  time.Duration
	// end closes the stream, silence holds it open without another byte.
	end, silence bool
}

// edits reads from a tape what is done to each of the first sessions.
func edits(data []byte) map[int][]edit {
	out := map[int][]edit{}
	for t := (&tape{data}); len(t.rest) > 0; {
		head, arg := t.next(), int(t.next())
		e := edit{offset: int(binary.LittleEndian.Uint16(append(t.take(2), 0, 0)))}
		switch head >> 2 & 7 {
		case 0:
			e.insert = t.take(arg)
			e.drop = len(e.insert)
		case 1:
			e.insert = t.take(arg)
		case 2:
			e.drop = arg
		case 3:
			e.end = true
		case 4:
			e.silence = true
		case 5:
			e.delay = time.Duration(arg) * time.Second
		case 6: // a word of another value
			e.insert, e.drop = words(1<<(arg%64)), 8
		case 7:
			e.insert, e.drop = words(-uint64(arg)), 8
		}
		session := int(head & 3)
		out[session] = append(out[session], e)
	}
	return out
}

// tampered is a connection to a builder on which edits are made.
type tampered struct {
	fleet.Stream
	edits  []edit
	passed int
	insert []byte
	drop   int
	closed chan struct{}
	once   sync.Once
}

func (s *tampered) Close() error {
	s.once.Do(func() { close(s.closed) })
	return s.Stream.Close()
}

// Read implements io.Reader. Edits whose place has gone by are made at once.
func (s *tampered) Read(p []byte) (int, error) {
	for {
		if len(s.insert) > 0 {
			n := copy(p, s.insert)
			s.insert = s.insert[n:]
			return n, nil
		}
		for s.drop > 0 {
			n, err := s.Stream.Read(make([]byte, s.drop))
			s.drop -= n
			s.passed += n
			if err != nil {
				return 0, err
			}
		}
		if len(s.edits) == 0 {
			return s.Stream.Read(p)
		}
		next := s.edits[0]
		if ahead := next.offset - s.passed; ahead > 0 {
			n, err := s.Stream.Read(p[:min(len(p), ahead)])
			s.passed += n
			return n, err
		}
		s.edits = s.edits[1:]
		if err := s.apply(next); err != nil {
			return 0, err
		}
	}
}

func (s *tampered) apply(e edit) error {
	switch {
	case e.end:
		return io.EOF
	case e.silence:
		<-s.closed
		return net.ErrClosed
	case e.delay > 0:
		select {
		case <-time.After(e.delay):
		case <-s.closed:
			return net.ErrClosed
		}
	}
	s.insert, s.drop = e.insert, e.drop
	return nil
}

// tampering numbers the sessions on a builder and makes the edits for each.
type tampering struct {
	fleet.Conn
	started *atomic.Int64
	edits   map[int][]edit
}

func (c tampering) Start(ctx context.Context, command string) (fleet.Stream, error) {
	s, err := c.Conn.Start(ctx, command)
	if err != nil {
		return nil, err
	}
	n := int(c.started.Add(1)) - 1
	return &tampered{Stream: s, edits: c.edits[n], closed: make(chan struct{})}, nil
}

// FuzzBuilder plays a builder whose answers are not those of a nix-daemon, beside one
// whose answers are. A client must hear of an end of its build, what it is given must
// have the hash it was promised, and nothing may be left over.
func FuzzBuilder(f *testing.F) {
	for _, seed := range []string{
		"",
		// garbage from the start; other versions, trust and text in the handshake
		"\x00\x07\x00\x00Welcome", "\x18\x05\x00\x00", "\x18\x08\x08\x00", "\x1c\x01\x10\x00", "\x18\x01\x20\x00", "\x0c\x00\x00\x00", "\x10\x00\x00\x00", "\x14\x0e\x00\x00",
		// lengths and counts in answers of sessions one and two
		"\x18\x3f\x30\x00", "\x19\x3f\x30\x00", "\x19\x3f\x38\x00", "\x19\x20\x40\x00", "\x19\x3f\x48\x00", "\x1d\x01\x50\x00", "\x1d\x01\x58\x00", "\x19\x1f\x60\x00", "\x19\x3f\x90\x00", "\x1a\x3f\xa0\x00",
		// streams that end, fall silent, lose and gain bytes
		"\x0d\x00\x38\x00", "\x0d\x00\x60\x00", "\x0d\x00\xc8\x00", "\x11\x00\x40\x00", "\x11\x00\xd0\x00", "\x09\x08\x40\x00", "\x05\x08\x60\x00ABCDEFGH", "\x15\xff\x30\x00", "\x15\x3c\x80\x00",
		"\x01\x01\xf0\x00x", "\x01\x01\x00\x01x", "\x01\x01\x90\x01x", "\x01\x01\x70\x01x\x02\x01\x70\x01x",
		// every session
		"\x0c\x00\x40\x00\x0d\x00\x40\x00\x0e\x00\x40\x00\x0f\x00\x40\x00", "\x10\x00\x28\x00\x11\x00\x28\x00\x12\x00\x28\x00\x13\x00\x28\x00",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		synctest.Test(t, func(t *testing.T) { withBuilder(t, edits(data)) })
	})
}

func withBuilder(t *testing.T, edits map[int][]edit) {
	evil := newMachine(t, "evil", daemontest.Options{}, slots(8))
	good := newMachine(t, "good", daemontest.Options{})
	var r *rig
	var started atomic.Int64
	r = newRig(t, rigOptions{builders: []*machine{evil, good}, dial: func(ctx context.Context, e inventory.Endpoint) (fleet.Conn, error) {
		conn, err := r.dial(ctx, e)
		if err != nil || e.ID() != evil.id {
			return conn, err
		}
		return tampering{Conn: conn, started: &started, edits: edits}, nil
	}})
	before := allocated()
	a, b := newFile("a", "A"), newFile("b", "B")
	evil.has(a)
	good.has(a)
	for i, d := range []derivation{newDerivation("first", a, b), eight()} {
		endsWell(t, r.connect(uint32(i+1), "x86_64-linux.0"), d, a, b)
	}
	synctest.Wait()
	if grown := allocated() - before; grown > mostAllocated {
		t.Errorf("%d MiB were allocated", grown>>20)
	}
}

// endsWell builds and checks that the client is told an end, and no lies about the
// outputs. A build that says nothing may last: the client leaves after an hour.
func endsWell(t *testing.T, c *client, d derivation, files ...file) {
	t.Helper()
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	valid, err := c.QueryValidPaths(ctx, pathsOf(files), false, nil)
	if err != nil {
		t.Errorf("what is there: %v", err)
		return
	}
	there := map[string]bool{}
	for _, path := range valid {
		there[path] = true
	}
	var missing []file
	for _, f := range files {
		if !there[f.info.Path] {
			missing = append(missing, f)
		}
	}
	if err := c.send(missing...); err != nil {
		t.Errorf("upload: %v", err)
		return
	}
	result, err := c.BuildDerivation(ctx, d.path, &d.BasicDerivation, daemon.BuildNormal, nil)
	if err != nil || !result.Status.Success() {
		return
	}
	for _, out := range d.Outputs {
		info, valid, err := c.QueryPathInfo(ctx, out.Path, nil)
		if err != nil || !valid {
			return
		}
		var nar bytes.Buffer
		if _, err := c.NARFromPath(ctx, out.Path, &nar, nil); err != nil {
			return
		}
		if got := daemontest.Hash(nar.Bytes()); got != info.NARHash {
			t.Errorf("%s has hash %s and was to have %s", out.Path, got, info.NARHash)
		}
	}
}
