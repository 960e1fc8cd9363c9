// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/internal/nix/nar"
	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

// captureStore is the store directory of all captured streams.
const captureStore = "/nt/store"

// opBuildPathsWithResults is in captures of clients that are not trusted; no end
// of ours speaks it.
const opBuildPathsWithResults Operation = 46

// capture is the two directions of one recorded connection.
type capture struct{ client, server []byte }

func readCapture(t testing.TB, path string) capture {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var c capture
	for len(data) > 0 {
		if len(data) < 5 {
			t.Fatalf("%s: %d bytes left", path, len(data))
		}
		tag, n := data[0], int(binary.LittleEndian.Uint32(data[1:]))
		record := data[5 : 5+n]
		switch tag {
		case 'C':
			c.client = append(c.client, record...)
		case 'S':
			c.server = append(c.server, record...)
		default:
			t.Fatalf("%s: tag %q", path, tag)
		}
		data = data[5+n:]
	}
	return c
}

func captures(t testing.TB) map[string]capture {
	t.Helper()
	files, err := filepath.Glob("testdata/captures/*/capy-*")
	if err != nil || len(files) != 9 {
		t.Fatalf("captures: %v, %v", files, err)
	}
	all := map[string]capture{}
	for _, f := range files {
		all[filepath.Join(filepath.Base(filepath.Dir(f)), filepath.Base(f))] = readCapture(t, f)
	}
	return all
}

// replay decodes both directions of a capture in step, and encodes everything
// again.
type replay struct {
	t              *testing.T
	capture        capture
	client, server *decoder
	ops            []Operation
	messages       int
	failed         *RemoteError
}

// same checks that what was decoded from start on encodes to the same bytes.
func (r *replay) same(what string, data []byte, d *decoder, start int64, encode func(*wire.Writer)) {
	r.t.Helper()
	if err := d.Err(); err != nil {
		r.t.Fatalf("%s: %v", what, err)
	}
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	encode(w)
	_ = w.Flush()
	if diff := cmp.Diff(data[start:d.Offset()], b.Bytes()); diff != "" {
		r.t.Errorf("%s encoded again (-captured +ours):\n%s", what, diff)
	}
}

func (r *replay) handshake() {
	c, s := r.client, r.server
	if m := c.Uint64("magic"); m != magicClient {
		r.t.Fatalf("client magic %#x", m)
	}
	if m := s.Uint64("magic"); m != magicServer {
		r.t.Fatalf("server magic %#x", m)
	}
	v := min(Version(c.Uint64("version")), Version(s.Uint64("version")))
	c.version, s.version = v, v
	if v >= versionFeatures {
		for _, d := range []*decoder{c, s} {
			if f := d.Strings("features", 100, 100); f != nil {
				r.t.Errorf("features %v", f)
			}
		}
	}
	if c.Uint64("affinity") != 0 || c.Uint64("reserve") != 0 {
		r.t.Error("affinity or reserved space")
	}
	if s.String("daemon version", limitVersion) == "" {
		r.t.Error("no daemon version")
	}
	if v >= versionTrust {
		s.Enum("trust", uint64(NotTrusted))
	}
	r.stderr()
	if err := errors.Join(c.Err(), s.Err()); err != nil {
		r.t.Fatal(err)
	}
}

// stderr decodes messages up to the last one; it returns false for an error.
func (r *replay) stderr() bool {
	for {
		start := r.server.Offset()
		m, err := r.server.message()
		if remote := (*RemoteError)(nil); errors.As(err, &remote) {
			r.same("error", r.capture.server, r.server, start, remote.encode)
			r.failed = remote
			return false
		}
		if err != nil {
			r.t.Fatal(err)
		}
		if m == nil {
			return true
		}
		r.messages++
		r.same(fmt.Sprintf("message %T", m), r.capture.server, r.server, start, m.encode)
	}
}

func (r *replay) operation() bool {
	if err := r.client.Wait(); err == io.EOF {
		return false
	}
	op := Operation(r.client.Uint64("operation"))
	r.ops = append(r.ops, op)
	start := r.client.Offset()
	srv := &Server{in: r.client}
	switch op {
	case opBuildPathsWithResults:
		paths, mode := r.client.Strings("paths", 10, limitPath), r.client.Uint64("mode")
		r.same(op.String(), r.capture.client, r.client, start, func(w *wire.Writer) { w.Strings(paths); w.Uint64(mode) })
	default:
		req := srv.request(op)
		if up, ok := req.(*AddMultipleToStore); ok {
			r.upload(up)
			break
		}
		r.same(op.String(), r.capture.client, r.client, start, func(w *wire.Writer) { encodeRequest(w, req) })
	}
	if r.stderr() {
		r.reply(op)
	}
	return true
}

// encodeRequest writes what follows the code of an operation.
func encodeRequest(w *wire.Writer, req Request) {
	switch q := req.(type) {
	case *QueryValidPaths:
		w.Strings(q.Paths)
		w.Bool(q.Substitute)
	case *BuildDerivation:
		w.String(q.DrvPath)
		q.Derivation.encode(w)
		w.Uint64(uint64(q.Mode))
	case *QueryPathInfo:
		w.String(q.Path)
	case *NARFromPath:
		w.String(q.Path)
	default:
		panic(fmt.Sprintf("no encoder of %T", req))
	}
}

// upload decodes an upload and compares its contents without the frames.
func (r *replay) upload(up *AddMultipleToStore) {
	start := r.client.Offset()
	var paths bytes.Buffer
	w := wire.NewWriter(&paths)
	n := 0
	for {
		info, archive, err := up.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			r.t.Fatal(err)
		}
		n++
		info.encode(w)
		if size, err := io.Copy(w, archive); err != nil || uint64(size) != info.NARSize {
			r.t.Errorf("archive of %s: %d bytes, %v", info.Path, size, err)
		}
	}
	_ = w.Flush()
	captured, err := io.ReadAll(wire.NewFramedReader(wire.NewReader(bytes.NewReader(r.capture.client[start:]))))
	if err != nil {
		r.t.Fatal(err)
	}
	want := append(binary.LittleEndian.AppendUint64(nil, uint64(n)), paths.Bytes()...)
	if diff := cmp.Diff(captured, want); diff != "" {
		r.t.Errorf("upload encoded again (-captured +ours):\n%s", diff)
	}
}

func (r *replay) reply(op Operation) {
	s, start := r.server, r.server.Offset()
	check := func(encode func(*wire.Writer)) {
		r.t.Helper()
		r.same("reply to "+op.String(), r.capture.server, s, start, encode)
	}
	switch op {
	case OpQueryValidPaths:
		paths := s.paths("paths")
		check(func(w *wire.Writer) { w.Strings(paths) })
	case OpAddMultipleToStore:
	case OpBuildDerivation:
		result := s.buildResult()
		check(func(w *wire.Writer) { result.encode(w, s.version) })
		if !result.Status.Success() || len(result.BuiltOutputs) == 0 || result.BuiltOutputs[0].Name() != "out" {
			r.t.Errorf("result %+v", result)
		}
	case opBuildPathsWithResults:
		n, path, result := s.Count("results", 10), s.String("path", limitPath), s.buildResult()
		check(func(w *wire.Writer) {
			w.Uint64(uint64(n))
			w.String(path)
			result.encode(w, s.version)
		})
	case OpQueryPathInfo:
		valid, info := s.Bool("valid"), s.unkeyedPathInfo("")
		check(func(w *wire.Writer) { w.Bool(valid); info.encodeUnkeyed(w) })
	case OpNARFromPath:
		if _, err := nar.Copy(io.Discard, s.Reader); err != nil {
			r.t.Fatal(err)
		}
	default:
		r.t.Fatalf("no reply decoder for %s", op)
	}
}

// TestCaptures follows recorded connections of real clients and daemons to the
// last byte of both directions.
func TestCaptures(t *testing.T) {
	t.Parallel()
	hook := []Operation{31, 44, 36, 26, 38}
	untrusted := []Operation{31, 44, 31, 44, 46, 26, 38}
	wantOps := map[string][]Operation{
		"28-28": hook, "226-226": hook, "234-234": hook, "u226-226": untrusted, "u28-226": {31, 44, 36},
	}
	for name, c := range captures(t) {
		for how, source := range map[string]func(io.Reader) io.Reader{
			"at once":      func(r io.Reader) io.Reader { return r },
			"byte by byte": iotest.OneByteReader,
		} {
			t.Run(name+"/"+how, func(t *testing.T) {
				t.Parallel()
				r := &replay{
					t: t, capture: c,
					client: newDecoder(source(bytes.NewReader(c.client)), Limits{}, captureStore),
					server: newDecoder(source(bytes.NewReader(c.server)), Limits{}, captureStore),
				}
				r.handshake()
				for r.operation() {
				}
				if got, want := r.client.Offset(), int64(len(c.client)); got != want {
					t.Errorf("read %d of the client's %d bytes", got, want)
				}
				if got, want := r.server.Offset(), int64(len(c.server)); got != want {
					t.Errorf("read %d of the server's %d bytes", got, want)
				}
				if want := wantOps[filepath.Dir(name)]; !slices.Equal(r.ops, want) {
					t.Errorf("operations %v, want %v", r.ops, want)
				}
				if r.messages == 0 && r.failed == nil {
					t.Error("no messages")
				}
				if refused := filepath.Dir(name) == "u28-226"; refused != (r.failed != nil) {
					t.Errorf("error = %v", r.failed)
				} else if refused && r.failed.Message != "you are not privileged to build input-addressed derivations" {
					t.Errorf("error %q", r.failed.Message)
				}
			})
		}
	}
}
