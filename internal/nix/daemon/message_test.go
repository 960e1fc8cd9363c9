// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"errors"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

func TestMessages(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		message Message
		bytes   string
	}{
		"plain line": {
			message: Next{Text: "building\n"},
			bytes:   "gmlo\x00\x00\x00\x00" + "\x09\x00\x00\x00\x00\x00\x00\x00building\n\x00\x00\x00\x00\x00\x00\x00",
		},
		"start of an activity": {
			message: StartActivity{
				ID: 7, Level: LevelInfo, Type: ActivityBuild, Text: "building 'x'",
				Fields: []Field{TextField("x.drv"), NumberField(1)}, Parent: 3,
			},
			bytes: "TRTS\x00\x00\x00\x00" + words(7, 3, 105) + str("building 'x'") +
				words(2, 1) + str("x.drv") + words(0, 1) + word(3),
		},
		"start without fields": {
			message: StartActivity{ID: 1},
			bytes:   "TRTS\x00\x00\x00\x00" + words(1, 0, 0, 0, 0, 0),
		},
		"stop of an activity": {
			message: StopActivity{ID: 7},
			bytes:   "POTS\x00\x00\x00\x00" + word(7),
		},
		"line of a build log": {
			message: LogLine(7, "make: done"),
			bytes:   "TLSR\x00\x00\x00\x00" + words(7, 101, 1, 1) + str("make: done"),
		},
		"progress": {
			message: ActivityResult{ID: 7, Type: 105, Fields: []Field{NumberField(1), NumberField(2), NumberField(0), NumberField(0)}},
			bytes:   "TLSR\x00\x00\x00\x00" + words(7, 105, 4, 0, 1, 0, 2, 0, 0, 0, 0),
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tc.bytes, encoded(t, tc.message.encode)); diff != "" {
				t.Errorf("encoded (-want +got):\n%s", diff)
			}
			d := newDecoder(iotest.OneByteReader(strings.NewReader(tc.bytes)), Limits{}, "")
			got, err := d.message()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.message, got); diff != "" {
				t.Errorf("decoded (-want +got):\n%s", diff)
			}
			if d.Offset() != int64(len(tc.bytes)) {
				t.Errorf("read %d of %d bytes", d.Offset(), len(tc.bytes))
			}
		})
	}
}

func TestRemoteError(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		err   *RemoteError
		bytes string
	}{
		"plain": {
			err: &RemoteError{Message: "path '\x1b[1mx\x1b[0m' is not valid\n"},
			bytes: "ptxc\x00\x00\x00\x00" + "\x05\x00\x00\x00\x00\x00\x00\x00Error\x00\x00\x00" + word(0) +
				"\x05\x00\x00\x00\x00\x00\x00\x00Error\x00\x00\x00" + str("path '\x1b[1mx\x1b[0m' is not valid\n") + words(0, 0),
		},
		"traces": {
			err: &RemoteError{Level: LevelWarn, Message: "no", Traces: []string{"while building", "while copying"}},
			bytes: "ptxc\x00\x00\x00\x00" + str("Error") + word(1) + str("Error") + str("no") + word(0) +
				word(2) + word(0) + str("while building") + word(0) + str("while copying"),
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tc.bytes, encoded(t, tc.err.encode)); diff != "" {
				t.Errorf("encoded (-want +got):\n%s", diff)
			}
			d := newDecoder(strings.NewReader(tc.bytes), Limits{}, "")
			m, err := d.message()
			var got *RemoteError
			if m != nil || !errors.As(err, &got) {
				t.Fatalf("message = %v, %v", m, err)
			}
			if diff := cmp.Diff(tc.err, got); diff != "" {
				t.Errorf("decoded (-want +got):\n%s", diff)
			}
			if got.Error() != tc.err.Message {
				t.Errorf("text = %q", got.Error())
			}
		})
	}
}

func TestMalformedMessages(t *testing.T) {
	t.Parallel()
	errHead := word(stderrError) + str("Error") + word(0) + str("Error") + str("no")
	tests := map[string]struct{ input, want string }{
		"read":              {word(stderrRead) + word(1), "the peer wants to exchange data"},
		"write":             {word(stderrWrite) + str("x"), "the peer wants to exchange data"},
		"unknown":           {word(0x1234), "0x1234 is no message"},
		"text of length -1": {word(stderrNext) + word(1<<64-1), "exceeds the limit"},
		"field kind":        {word(stderrResult) + words(1, 101, 1, 2), "2 is not a boolean"},
		"field count":       {word(stderrResult) + words(1, 101, 1<<40), "field count"},
		"position":          {errHead + word(1), "a source position has no form"},
		"position of trace": {errHead + words(0, 1, 1), "a source position has no form"},
		"trace count":       {errHead + words(0, 1<<64-1), "trace count"},
		"larger than a message": {
			word(stderrNext) + str(strings.Repeat("x", 1<<20+1)), "the message exceeds its size limit",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDecoder(strings.NewReader(tc.input), Limits{Message: 1 << 20}, "")
			m, err := d.message()
			if m != nil || !errors.Is(err, wire.ErrMalformed) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("message = %v, %v, want an error with %q", m, err, tc.want)
			}
		})
	}
}

func TestMessagesStopAtTheSinkError(t *testing.T) {
	t.Parallel()
	full := errors.New("full")
	d := newDecoder(strings.NewReader(encoded(t, Next{Text: "a"}.encode)+word(stderrLast)), Limits{}, "")
	err := d.messages(func(Message) error { return full })
	if !errors.Is(err, full) {
		t.Errorf("error = %v", err)
	}
	if isRemote(&ProtocolError{Err: &RemoteError{}}) || !isRemote(&RemoteError{}) {
		t.Error("isRemote must look at the error itself only")
	}
}
