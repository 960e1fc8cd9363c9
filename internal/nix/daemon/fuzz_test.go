// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

// fuzzLimits keep what a decoder may hold small, so that a fuzz target that
// exceeds them shows as memory.
func fuzzLimits() Limits { return Limits{Message: 1 << 20, Paths: 1 << 10, NAR: 1 << 30} }

// hostile are lengths and counts that no peer means.
func hostile() []string {
	return []string{"", word(1<<64 - 1), word(1<<64 - 2), word(1 << 63), word(1 << 40), word(1 << 31), "\x01\x02"}
}

// fuzzRoundTrip checks on data that whatever read accepts, write gives back byte
// by byte.
func fuzzRoundTrip(f *testing.F, version Version, seeds []string, decode func(*decoder) func(*wire.Writer)) {
	f.Helper()
	for _, s := range append(seeds, hostile()...) {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d := newDecoder(bytes.NewReader(data), fuzzLimits(), "")
		d.version = version
		d.SetBudget(d.limits.Message)
		encode := decode(d)
		if err := d.Err(); err != nil {
			var we *wire.Error
			if !errors.As(err, &we) || we.Field == "" || we.Offset > int64(len(data)) {
				t.Errorf("error %#v without a place", err)
			}
			return
		}
		if encode == nil {
			return
		}
		if got, want := encoded(t, encode), string(data[:d.Offset()]); got != want {
			t.Errorf("encoded again: %q, want %q", got, want)
		}
	})
}

func FuzzMessage(f *testing.F) {
	f.Add([]byte(word(stderrError) + str("Error") + word(0) + str("x") + str("no") + words(0, 1, 0) + str("while")))
	for _, c := range captures(f) {
		if i := bytes.Index(c.server, []byte(lastBytes)); i > 0 {
			f.Add(c.server[i+8:])
		}
	}
	var seeds []string
	for _, m := range []Message{
		Next{"x\n"}, StopActivity{1}, LogLine(1, "y"),
		StartActivity{ID: 1, Level: LevelInfo, Type: ActivityBuild, Fields: []Field{TextField("a"), NumberField(1)}},
	} {
		seeds = append(seeds, encoded(f, m.encode))
	}
	for _, code := range []uint64{stderrNext, stderrResult, stderrStartActivity, stderrError, stderrRead, stderrWrite, stderrLast} {
		seeds = append(seeds, words(code, 1<<64-1), words(code, 0, 1<<64-2), words(code, 1, 101, 1<<40))
	}
	fuzzRoundTrip(f, Protocol, seeds, func(d *decoder) func(*wire.Writer) {
		m, err := d.message()
		var remote *RemoteError
		switch {
		case errors.As(err, &remote):
			return nil // its two names are not kept
		case m == nil:
			return func(w *wire.Writer) { w.Uint64(stderrLast) }
		}
		return m.encode
	})
}

func FuzzPathInfo(f *testing.F) {
	fuzzRoundTrip(f, Protocol, []string{
		uploaded(pathA, 1, ""),
		str(pathA) + str(pathDrv) + str(hashA) + strs(pathA, pathB) + words(1795500000, 128, 1) + strs("key:c2ln") + str("text:sha256:x"),
		str(pathA) + str("") + str(hashA) + word(1<<64-1),
	}, func(d *decoder) func(*wire.Writer) {
		p := d.pathInfo()
		return func(w *wire.Writer) { p.encode(w) }
	})
}

func FuzzDerivation(f *testing.F) {
	fuzzRoundTrip(f, Protocol, []string{
		words(0, 0, 0, 0, 0, 0),
		word(1) + str("out") + str(pathA) + str("r:sha256") + str(hashA) + strs(pathB) + str("x86_64-linux") +
			str("/bin/sh") + strs("-c", ":") + word(1) + str("__json") + str(`{"requiredSystemFeatures":["kvm"]}`),
		word(1) + str("out") + word(1<<64-1),
		words(0, 0, 0, 0, 0, 1<<40),
	}, func(d *decoder) func(*wire.Writer) {
		drv := d.derivation()
		if drv != nil {
			drv.FixedOutput()
			_, _ = drv.RequiredSystemFeatures()
		}
		return func(w *wire.Writer) { drv.encode(w) }
	})
}

func FuzzBuildResult(f *testing.F) {
	fuzzBuildResult(f, Protocol)
}

func FuzzBuildResultWithCPUTimes(f *testing.F) {
	fuzzBuildResult(f, versionCPUTimes)
}

func fuzzBuildResult(f *testing.F, version Version) {
	fuzzRoundTrip(f, version, []string{
		words(0, 0, 0, 0, 0, 0, 0),
		words(15, 0, 0, 0, 0, 0, 0),
		words(0, 0, 0, 0, 0, 0, 1, 5, 0, 0),
		word(3) + str("failed") + words(1, 1, 5, 6, 1) + str("sha256:00!out") + str("{}"),
		words(0, 0, 0, 0, 0, 0, 1<<64-1),
	}, func(d *decoder) func(*wire.Writer) {
		b := d.buildResult()
		if b != nil && (b.Status == StatusMiscFailure || b.Status == StatusOutputRejected) {
			return nil // perhaps a status that is mapped
		}
		return func(w *wire.Writer) { b.encode(w, version) }
	})
}

// FuzzServer plays any client against a server: it must end with an error or the
// end of the stream, and hold no more than its limits allow.
func FuzzServer(f *testing.F) {
	hello := "cxin\x00\x00\x00\x00"
	for name, c := range captures(f) {
		if strings.HasPrefix(filepath.Dir(name), "28") {
			f.Add(c.client)
		}
	}
	for _, s := range []string{
		words(0x123, 0, 0), words(0x126, 1, 7, 0), words(0x121, 0, 0), words(0x115, 0, 0), words(1<<64-1, 0, 0),
		words(0x123, 0, 0, 19, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1) + str("a") + str("b"),
		words(0x123, 0, 0, 19, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1<<64-1),
		words(0x123, 0, 0, 44, 0, 1, 8, 0, 0),
		words(0x123, 0, 0, 44, 0, 1) + framed(word(1)+uploaded(pathA, 0, fileNAR("x")), 64),
		words(0x123, 0, 0, 44, 0, 1, 1<<64-1),
		words(0x123, 0, 0, 31, 1<<64-2),
		words(0x123, 0, 0, 9, 0, 1) + words(32) + strs(pathA),
		words(0x123, 0, 0, 36) + str(pathDrv) + words(0, 0, 0, 0, 0, 0, 0) + words(26) + str(pathA) + words(38) + str(pathA),
	} {
		f.Add([]byte(hello + s))
	}
	for _, s := range hostile() {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		limits := fuzzLimits()
		limits.Drain = 1 << 20
		dir := "" // the captures are of another store
		if bytes.Contains(data, []byte("/nt/store/")) {
			dir = "/nt/store"
		}
		s, err := Accept(t.Context(), &oneSided{r: bytes.NewReader(data)}, ServerOptions{
			Limits: limits, StoreDir: dir, Operations: append(HookOperations(), OpBuildPaths, OpQuerySubstitutablePaths, OpAddTempRoot),
		})
		if err != nil {
			return
		}
		for range len(data)/8 + 1 {
			if !serveAnything(t, s) {
				return
			}
		}
		t.Error("more requests than the bytes could hold")
	})
}

// oneSided is a connection whose peer has said all it will and takes anything.
type oneSided struct{ r io.Reader }

func (o *oneSided) Read(p []byte) (int, error)  { return o.r.Read(p) }
func (o *oneSided) Write(p []byte) (int, error) { return len(p), nil }
func (o *oneSided) Close() error                { return nil }

// serveAnything answers one request in some way; it returns false at the end.
func serveAnything(t *testing.T, s *Server) bool {
	req, err := s.Next()
	var pe *ProtocolError
	if errors.As(err, &pe) {
		if err := s.Fail(err); err != nil {
			t.Errorf("Fail after %v: %v", pe, err)
		}
		return false
	}
	if err != nil {
		return false
	}
	switch r := req.(type) {
	case *QueryValidPaths, *QuerySubstitutablePaths:
		err = s.ReplyPaths(nil)
	case *QueryPathInfo:
		err = s.ReplyPathInfo(nil, false)
	case *BuildDerivation:
		err = s.ReplyBuildResult(&BuildResult{})
	case *NARFromPath:
		err = s.Fail(errors.New("no"))
	case *AddMultipleToStore:
		return takeUpload(s, r)
	default:
		err = s.ReplyDone()
	}
	if err != nil {
		t.Errorf("reply to %s: %v", req.Operation(), err)
	}
	return true
}

func takeUpload(s *Server, up *AddMultipleToStore) bool {
	for {
		_, r, err := up.Next()
		if err == io.EOF {
			return s.ReplyDone() == nil
		}
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		if err != nil {
			return s.Fail(err) == nil
		}
	}
}

// FuzzClient plays any daemon against a client.
func FuzzClient(f *testing.F) {
	hello := serverMagic + word(0x123) + str("2.34.8") + word(1) + lastBytes
	for _, s := range []string{
		lastBytes + strs(pathA) + lastBytes + word(1) + str("") + str(hashA) + words(0, 0, 0, 0, 0, 0),
		lastBytes + strs(pathA) + lastBytes + word(0) + lastBytes + fileNAR("x") + lastBytes + words(0, 0, 0, 0, 0, 0, 0),
		lastBytes + word(1<<64-1),
		lastBytes + word(0) + lastBytes + word(0) + lastBytes + str("nix-archive-1") + word(1<<64-2),
	} {
		f.Add([]byte(hello + s))
	}
	f.Add([]byte(serverMagic + word(0x122) + str("2.8.0") + lastBytes))
	f.Add([]byte("Welcome\n"))
	f.Add([]byte(word(magicAccessDenied)))
	for _, s := range hostile() {
		f.Add([]byte(s))
		f.Add([]byte(serverMagic + s))
		f.Add([]byte(hello + s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		ctx := t.Context()
		c, err := NewClient(ctx, &oneSided{r: bytes.NewReader(data)}, ClientOptions{Limits: fuzzLimits()})
		if err != nil {
			return
		}
		_, _ = c.QueryValidPaths(ctx, []string{pathA}, false, nil)
		_, _, _ = c.QueryPathInfo(ctx, pathA, nil)
		_, _ = c.NARFromPath(ctx, pathA, io.Discard, nil)
		_ = c.AddMultipleToStore(ctx, files("x"), nil)
		_, _ = c.BuildDerivation(ctx, pathDrv, &BasicDerivation{}, BuildNormal, nil)
	})
}

// FuzzFlight plays any daemon against requests that are sent several at a time, from
// their first answer on.
func FuzzFlight(f *testing.F) {
	info := lastBytes + word(1) + str("") + str(hashA) + words(0, 0, 128, 0, 0, 0)
	result := lastBytes + words(0, 0, 0, 0, 0, 0, 0)
	archive := lastBytes + fileNAR("x")
	for _, s := range []string{
		lastBytes + word(1) + lastBytes + word(1) + lastBytes + strs(pathA, pathB),
		lastBytes + word(1) + lastBytes + word(1) + lastBytes + strs(pathA, pathDrv),
		info + info, info + lastBytes + word(0), lastBytes + word(0) + info,
		result + info + archive + info + archive, result + info + archive + lastBytes + word(0),
		result + info + lastBytes + str("nix-archive-1") + word(1<<64-2),
		lastBytes + words(3, 2) + "no\x00\x00\x00\x00\x00\x00" + words(0, 0, 0, 0, 0) + lastBytes + word(0),
		word(stderrError) + str("Error") + word(0) + str("x") + str("path is not valid") + words(0, 0),
	} {
		f.Add([]byte(s))
	}
	for _, s := range hostile() {
		f.Add([]byte(lastBytes + s))
		f.Add([]byte(result + lastBytes + s))
	}
	hello := serverMagic + word(0x123) + str("2.34.8") + word(1) + lastBytes
	f.Fuzz(func(t *testing.T, data []byte) {
		ctx, asked := t.Context(), []string{pathA, pathB}
		with := func(call func(c *Client)) {
			c, err := NewClient(ctx, &oneSided{r: strings.NewReader(hello + string(data))}, ClientOptions{Limits: fuzzLimits()})
			if err != nil {
				t.Fatal(err)
			}
			call(c)
		}
		with(func(c *Client) {
			valid, err := c.HoldPaths(ctx, asked, nil)
			if err != nil && valid != nil {
				t.Errorf("HoldPaths: %q and %v", valid, err)
			}
		})
		with(func(c *Client) {
			infos, err := c.QueryPathInfos(ctx, asked, nil)
			if err == nil && len(infos) != len(asked) {
				t.Errorf("QueryPathInfos: %d infos", len(infos))
			}
		})
		with(func(c *Client) {
			taken := 0
			result, err := c.BuildOutputs(ctx, pathDrv, &BasicDerivation{}, BuildNormal, nil, Outputs{
				Paths: asked, Take: func(PathInfo) (io.Writer, error) { taken++; return io.Discard, nil },
			})
			if err == nil && (result == nil || result.Status.Success() && taken != len(asked)) {
				t.Errorf("BuildOutputs: %+v with %d outputs", result, taken)
			}
		})
	})
}
