// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

// words encodes numbers as the protocol does.
func words(numbers ...uint64) []byte {
	var out []byte
	for _, n := range numbers {
		out = binary.LittleEndian.AppendUint64(out, n)
	}
	return out
}

// greeting is a client's whole part of the handshake.
func greeting(version uint64) []byte { return words(0x6e697863, version, 0, 0) }

// converse sends bytes and returns all that comes back until the dispatcher
// closes the connection or falls silent for a minute.
func converse(t *testing.T, conn net.Conn, bytes ...[]byte) string {
	t.Helper()
	defer conn.Close()
	go func() {
		for _, b := range bytes {
			if _, err := conn.Write(b); err != nil {
				return
			}
		}
	}()
	conn.SetReadDeadline(time.Now().Add(time.Minute))
	answer, err := io.ReadAll(conn)
	if err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "timeout") && !strings.Contains(err.Error(), "reset") {
		t.Logf("read: %v", err)
	}
	return string(answer)
}

func TestSettingsAreAnsweredAndDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", daemontest.Options{})
		r := newRig(t, rigOptions{builders: []*machine{m}})
		setOptions := words(19, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0)
		answer := converse(t, r.dialClient(1, "x86_64-linux.0"), greeting(0x123), setOptions, setOptions)
		last := string(words(0x616c7473))
		if n := strings.Count(answer, last); n != 3 {
			t.Errorf("%d ends of messages, want one for the handshake and one for each request: %q", n, answer)
		}
		if len(m.Operations()) != 0 {
			t.Errorf("operations on the builder: %v", m.Operations())
		}
	})
}

func TestOperationsOutsideTheList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", daemontest.Options{})
		r := newRig(t, rigOptions{builders: []*machine{m}})
		d := newDerivation("out")
		tests := map[string]struct {
			call func(c *client) error
			want string
		}{
			"repair": {func(c *client) error {
				_, err := c.BuildDerivation(t.Context(), d.path, &d.BasicDerivation, daemon.BuildRepair, nil)
				return err
			}, "BuildDerivation (36) in mode repair (1)"},
			"check": {func(c *client) error {
				_, err := c.BuildDerivation(t.Context(), d.path, &d.BasicDerivation, daemon.BuildCheck, nil)
				return err
			}, "BuildDerivation (36) in mode check (2)"},
			"build paths":         {func(c *client) error { return c.BuildPaths(t.Context(), nil, daemon.BuildNormal, nil) }, "BuildPaths (9)"},
			"substitutable paths": {func(c *client) error { _, err := c.QuerySubstitutablePaths(t.Context(), nil, nil); return err }, "QuerySubstitutablePaths (32)"},
		}
		for name, tc := range tests {
			c := r.connect(1, "x86_64-linux.0")
			if err := tc.call(c); err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "not offered") {
				t.Errorf("%s: error = %v, want one with %q", name, err, tc.want)
			}
		}
		for _, op := range []uint64{1, 6, 7, 14, 20, 23, 37, 39, 45, 46, 47, 1000, 1 << 40} {
			answer := converse(t, r.dialClient(1, "x86_64-linux.0"), greeting(0x123), words(op, 0, 0, 0, 0))
			if want := daemon.Operation(op).String() + " is not offered"; !strings.Contains(answer, want) {
				t.Errorf("operation %d: answer %q, want %q", op, answer, want)
			}
		}
		if len(m.Operations()) != 0 {
			t.Errorf("operations on the builder: %v", m.Operations())
		}
	})
}

func TestPathsOutsideTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigOptions{builders: []*machine{newMachine(t, "one", daemontest.Options{})}})
		for _, path := range []string{"/etc/passwd", "/nix/store/../../etc", "/nix/store/short-x", ""} {
			c := r.connect(1, "x86_64-linux.0")
			if _, err := c.QueryValidPaths(t.Context(), []string{path}, false, nil); err == nil || !strings.Contains(err.Error(), "store path") {
				t.Errorf("%q: error = %v", path, err)
			}
		}
	})
}

func TestLineThatDoesNotExist(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigOptions{builders: []*machine{newMachine(t, "one", daemontest.Options{})}})
		for line, want := range map[string]string{"riscv64-linux.0": "no builders of class", "x86_64-linux.77": "no slot 77"} {
			// The handshake goes through: refusing it would cost the client all
			// its other lines.
			c := r.connect(1, line)
			if _, err := c.QueryValidPaths(t.Context(), nil, false, nil); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error = %v, want one with %q", line, err, want)
			}
		}
	})
}

func TestOldClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigOptions{})
		answer := converse(t, r.dialClient(1, "x86_64-linux.0"), greeting(0x121))
		if !strings.Contains(answer, "speaks version 1.33") || !strings.Contains(answer, "too old") {
			t.Errorf("answer %q", answer)
		}
	})
}

func TestClientThatWaitsForOurVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigOptions{})
		conn := r.dialClient(1, "x86_64-linux.0")
		defer conn.Close()
		conn.Write(words(0x6e697863))
		answer := make([]byte, 16)
		if _, err := io.ReadFull(conn, answer); err != nil || !bytes.Equal(answer, words(0x6478696f, 0x123)) {
			t.Errorf("answer %q, %v", answer, err)
		}
	})
}

func TestGarbage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", daemontest.Options{})
		r := newRig(t, rigOptions{builders: []*machine{m}})
		huge := uint64(1) << 62
		tests := map[string][]byte{
			"nothing":             nil,
			"HTTP":                []byte("GET / HTTP/1.1\r\n\r\n"),
			"no helper":           greeting(0x123),
			"zeroes":              make([]byte, 4096),
			"header cut short":    []byte("nxbC\x01\x00\x2f\x00"),
			"header of a giant":   []byte("nxbC\x01\x00\xff\xff" + strings.Repeat("x", 70000)),
			"header, no Nix":      nil,
			"huge path count":     slices.Concat(greeting(0x123), words(31, huge)),
			"huge string":         slices.Concat(greeting(0x123), words(26, huge)),
			"huge frame":          slices.Concat(greeting(0x123), words(44, 0, 1, huge)),
			"upload cut short":    slices.Concat(greeting(0x123), words(44, 0, 1, 8, 3)),
			"upload count huge":   slices.Concat(greeting(0x123), words(44, 0, 1, 8, huge, 0)),
			"derivation nonsense": slices.Concat(greeting(0x123), words(36, 5, 7, 9, huge, 3, 3, 3)),
		}
		random := rand.New(rand.NewPCG(1, 2))
		for range 50 {
			b := greeting(0x123)
			for range random.IntN(200) {
				b = append(b, byte(random.IntN(256)))
			}
			tests["random "+string(b[32:])] = b
		}
		var before runtime.MemStats
		runtime.ReadMemStats(&before)
		for name, in := range tests {
			withHeader := strings.HasPrefix(string(in), string(words(0x6e697863))) && name != "no helper" || name == "header, no Nix"
			var conn net.Conn
			if withHeader {
				conn = r.dialClient(1, "x86_64-linux.0")
			} else {
				var err error
				if conn, err = r.network.Dial(t.Context(), "unix", address); err != nil {
					t.Fatal(err)
				}
			}
			converse(t, conn, in)
		}
		synctest.Wait()
		var after runtime.MemStats
		runtime.ReadMemStats(&after)
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 256<<20 {
			t.Errorf("%d MiB were allocated for garbage", grown>>20)
		}
		if len(m.Builds()) != 0 {
			t.Errorf("built %v", m.Builds())
		}
		// It still works.
		r.connect(1, "x86_64-linux.0").mustBuild(newDerivation("out"))
	})
}

func TestShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", daemontest.Options{Build: func(context.Context, *daemontest.Build) *daemon.BuildResult {
			time.Sleep(time.Minute)
			return nil
		}})
		r := newRig(t, rigOptions{builders: []*machine{m}})
		idle := r.connect(1, "x86_64-linux.0")
		running, waiting := r.connect(2, "x86_64-linux.0"), r.connect(3, "x86_64-linux.0")
		built, refused := make(chan error, 1), make(chan error, 1)
		d := newDerivation("out")
		go func() {
			_, err := running.build(d)
			built <- err
		}()
		synctest.Wait()
		go func() {
			_, err := waiting.build(newDerivation("other"))
			refused <- err
		}()
		synctest.Wait()

		began := time.Now()
		down := make(chan error, 1)
		go func() { down <- r.server.Shutdown(context.Background()) }()
		if err := <-refused; err == nil || !strings.Contains(err.Error(), "shutting down") {
			t.Errorf("waiting build: %v", err)
		}
		// Waiting builds may hear of it before idle sessions are closed.
		synctest.Wait()
		if _, err := idle.QueryValidPaths(t.Context(), nil, false, nil); err == nil {
			t.Error("an idle session was served")
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("refusing took %v", took)
		}
		if err := <-built; err != nil {
			t.Errorf("running build: %v", err)
		}
		running.fetch(d.Outputs[0].Path)
		if err := <-down; err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if took := time.Since(began); took != time.Minute {
			t.Errorf("Shutdown took %v, want the rest of the build", took)
		}
		if _, err := r.network.Dial(t.Context(), "unix", address); err == nil {
			t.Error("connections are still accepted")
		}
	})
}

func TestShutdownInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", daemontest.Options{Build: func(ctx context.Context, _ *daemontest.Build) *daemon.BuildResult {
			<-ctx.Done()
			return nil
		}})
		r := newRig(t, rigOptions{builders: []*machine{m}})
		c := r.connect(1, "x86_64-linux.0")
		built := make(chan error, 1)
		go func() {
			_, err := c.build(newDerivation("out"))
			built <- err
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		began := time.Now()
		if err := r.server.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown: %v, want %v", err, context.DeadlineExceeded)
		}
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("Shutdown took %v", took)
		}
		if err := <-built; err == nil || !strings.Contains(err.Error(), errKilled.Error()) {
			t.Errorf("error of the build that was cut short = %v, want the reason", err)
		}
	})
}

func TestServeAfterShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigOptions{})
		if err := r.server.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := r.server.Serve(r.network.Listen("other:1")); !errors.Is(err, ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
}
