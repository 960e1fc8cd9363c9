// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemontest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	pathA   = "/nix/store/00000000000000000000000000000000-a"
	pathB   = "/nix/store/11111111111111111111111111111111-b"
	pathOut = "/nix/store/22222222222222222222222222222222-out"
	pathDrv = "/nix/store/33333333333333333333333333333333-x.drv"
)

func derivation() *daemon.BasicDerivation {
	return &daemon.BasicDerivation{
		Outputs:      []daemon.DerivationOutput{{Name: "out", Path: pathOut}},
		InputSources: []string{pathA, pathB},
		Platform:     "x86_64-linux", Builder: "/bin/sh",
	}
}

// source uploads pathA and pathB.
func source() daemon.PathSource {
	next := 0
	return daemon.PathSource{Count: 2, Next: func() (daemon.PathInfo, io.Reader, error) {
		info, archive := daemontest.FileInfo([]string{pathA, pathB}[next], []byte(fmt.Sprint(next)))
		next++
		return info, bytes.NewReader(archive), nil
	}}
}

func connect(t *testing.T, d *daemontest.Daemon) *daemon.Client {
	t.Helper()
	c, err := daemon.NewClient(t.Context(), d.Dial(), daemon.ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func start(t *testing.T, opts daemontest.Options) *daemontest.Daemon {
	t.Helper()
	d := daemontest.New(opts)
	t.Cleanup(d.Close)
	return d
}

// TestWholeBuild walks through what a build hook does, with every version and
// trust that a daemon may announce.
func TestWholeBuild(t *testing.T) {
	t.Parallel()
	for _, version := range []daemon.Version{0, 0x122, 0x123, 0x126} {
		for _, trust := range []daemon.Trust{daemon.TrustUnknown, daemon.Trusted} {
			t.Run(fmt.Sprint(version, trust), func(t *testing.T) {
				t.Parallel()
				d := start(t, daemontest.Options{
					Version: version, Trust: trust,
					Build: func(_ context.Context, b *daemontest.Build) *daemon.BuildResult {
						if err := b.Log("hello from the build"); err != nil {
							t.Error(err)
						}
						return nil
					},
				})
				wholeBuild(t, d, connect(t, d))
				want := []daemon.Operation{31, 44, 31, 36, 26, 38}
				if diff := cmp.Diff(want, d.Operations()); diff != "" {
					t.Errorf("operations (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff([]string{pathDrv}, d.Builds()); diff != "" || d.Sessions() != 1 {
					t.Errorf("%d sessions, builds (-want +got):\n%s", d.Sessions(), diff)
				}
			})
		}
	}
}

func wholeBuild(t *testing.T, d *daemontest.Daemon, c *daemon.Client) {
	t.Helper()
	ctx := t.Context()
	inputs := []string{pathA, pathB}
	if got, err := c.QueryValidPaths(ctx, inputs, true, nil); err != nil || len(got) != 0 {
		t.Fatalf("before the upload: %v, %v", got, err)
	}
	if err := c.AddMultipleToStore(ctx, source(), nil); err != nil {
		t.Fatal(err)
	}
	if got, err := c.QueryValidPaths(ctx, inputs, false, nil); err != nil || cmp.Diff(inputs, got) != "" {
		t.Fatalf("after the upload: %v, %v", got, err)
	}
	var log []daemon.Message
	result, err := c.BuildDerivation(ctx, pathDrv, derivation(), daemon.BuildNormal, func(m daemon.Message) error {
		log = append(log, m)
		return nil
	})
	if err != nil || result.Status != daemon.StatusBuilt {
		t.Fatalf("build: %+v, %v", result, err)
	}
	if len(log) != 3 || cmp.Diff(daemon.Message(daemon.LogLine(1, "hello from the build")), log[1]) != "" {
		t.Errorf("log %v", log)
	}
	info, ok, err := c.QueryPathInfo(ctx, pathOut, nil)
	if err != nil || !ok {
		t.Fatalf("path info: %v, %t, %v", info, ok, err)
	}
	var archive bytes.Buffer
	n, err := c.NARFromPath(ctx, pathOut, &archive, nil)
	if err != nil || uint64(n) != info.NARSize || daemontest.Hash(archive.Bytes()) != info.NARHash {
		t.Errorf("archive of %d bytes, %v", n, err)
	}
	stored, _, _ := d.Path(pathOut)
	if diff := cmp.Diff(&stored, info); diff != "" {
		t.Errorf("path info (-stored +got):\n%s", diff)
	}
}

func TestUntrusted(t *testing.T) {
	t.Parallel()
	d := start(t, daemontest.Options{Trust: daemon.NotTrusted})
	d.AddFile(pathA, nil)
	d.AddFile(pathB, nil)
	for name, tc := range map[string]struct {
		call func(*daemon.Client) error
		want string
	}{
		"upload": {
			func(c *daemon.Client) error { return c.AddMultipleToStore(t.Context(), source(), nil) },
			"cannot add path '" + pathA + "' because it lacks a signature by a trusted key",
		},
		"build": {
			func(c *daemon.Client) error {
				_, err := c.BuildDerivation(t.Context(), pathDrv, derivation(), daemon.BuildNormal, nil)
				return err
			},
			"you are not privileged to build input-addressed derivations",
		},
		"repair": {
			func(c *daemon.Client) error { return c.BuildPaths(t.Context(), nil, daemon.BuildRepair, nil) },
			"repairing is not allowed because you are not in 'trusted-users'",
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := connect(t, d)
			if c.Peer().Trust != daemon.NotTrusted {
				t.Errorf("peer %+v", c.Peer())
			}
			var remote *daemon.RemoteError
			if err := tc.call(c); !errors.As(err, &remote) || remote.Message != tc.want {
				t.Errorf("error = %v, want %q", err, tc.want)
			}
		})
	}
	if err := connect(t, start(t, daemontest.Options{})).BuildPaths(t.Context(), nil, daemon.BuildRepair, nil); err != nil {
		t.Errorf("repair for a trusted user: %v", err)
	}
}

func TestMissingInput(t *testing.T) {
	t.Parallel()
	d := start(t, daemontest.Options{})
	d.AddFile(pathA, nil)
	d.AddFile(pathB, nil)
	d.Delete(pathB)
	_, err := connect(t, d).BuildDerivation(t.Context(), pathDrv, derivation(), daemon.BuildNormal, nil)
	var remote *daemon.RemoteError
	if !errors.As(err, &remote) || remote.Message != "path '"+pathB+"' is not valid" {
		t.Errorf("error = %v", err)
	}
	if len(d.Builds()) != 0 {
		t.Errorf("builds %v", d.Builds())
	}
}

func TestSubstitutes(t *testing.T) {
	t.Parallel()
	d := start(t, daemontest.Options{Substitutes: []string{pathB}})
	c := connect(t, d)
	both := []string{pathA, pathB}
	if got, err := c.QuerySubstitutablePaths(t.Context(), both, nil); err != nil || cmp.Diff([]string{pathB}, got) != "" {
		t.Errorf("substitutable: %v, %v", got, err)
	}
	if got, err := c.QueryValidPaths(t.Context(), both, false, nil); err != nil || len(got) != 0 {
		t.Errorf("valid: %v, %v", got, err)
	}
	if got, err := c.QueryValidPaths(t.Context(), both, true, nil); err != nil || cmp.Diff([]string{pathB}, got) != "" {
		t.Errorf("valid after substitution: %v, %v", got, err)
	}
}

func TestBadUploads(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(*daemon.PathInfo)
		want   string
	}{
		"hash":      {func(p *daemon.PathInfo) { p.NARHash = strings.Repeat("0", 64) }, "hash mismatch importing path"},
		"reference": {func(p *daemon.PathInfo) { p.References = []string{pathOut} }, "path '" + pathOut + "' is not valid"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := start(t, daemontest.Options{})
			src := source()
			next := src.Next
			src.Next = func() (daemon.PathInfo, io.Reader, error) {
				info, r, err := next()
				tc.change(&info)
				return info, r, err
			}
			c := connect(t, d)
			var remote *daemon.RemoteError
			if err := c.AddMultipleToStore(t.Context(), src, nil); !errors.As(err, &remote) || !strings.Contains(remote.Message, tc.want) {
				t.Errorf("error = %v, want %q", err, tc.want)
			}
			if _, err := c.QueryValidPaths(t.Context(), nil, false, nil); err != nil {
				t.Errorf("the next request: %v", err)
			}
		})
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	query := func(ctx context.Context, c *daemon.Client) error {
		_, err := c.QueryValidPaths(ctx, []string{pathA}, false, nil)
		return err
	}
	tests := map[string]struct {
		fault func(context.Context) error
		check func(error) bool
	}{
		"hangs up": {daemontest.HangUp, func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }},
		"refuses": {daemontest.Refuse("out of order"), func(err error) bool {
			var remote *daemon.RemoteError
			return errors.As(err, &remote) && remote.Message == "out of order"
		}},
		"is silent": {daemontest.Silent, func(err error) bool { return errors.Is(err, context.DeadlineExceeded) }},
		"is slow":   {func(context.Context) error { time.Sleep(time.Second); return nil }, func(err error) bool { return err == nil }},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				d := start(t, daemontest.Options{Before: daemontest.At(2, tc.fault)})
				c := connect(t, d)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if err := query(ctx, c); err != nil {
					t.Fatalf("the first request: %v", err)
				}
				if err := query(ctx, c); !tc.check(err) {
					t.Errorf("the second request: %v", err)
				}
			})
		})
	}
}

func TestFaultBeforeAnUpload(t *testing.T) {
	t.Parallel()
	d := start(t, daemontest.Options{Before: daemontest.At(1, daemontest.Refuse("disk full"))})
	c := connect(t, d)
	var remote *daemon.RemoteError
	if err := c.AddMultipleToStore(t.Context(), source(), nil); !errors.As(err, &remote) {
		t.Errorf("error = %v", err)
	}
	if err := c.AddMultipleToStore(t.Context(), source(), nil); err != nil {
		t.Errorf("the second upload: %v", err)
	}
}

// A client that goes away ends its build; one build is then gone from the daemon.
func TestHangUpCancelsTheBuild(t *testing.T) {
	t.Parallel()
	cancelled := make(chan error, 1)
	started := make(chan struct{})
	d := start(t, daemontest.Options{Build: func(ctx context.Context, _ *daemontest.Build) *daemon.BuildResult {
		close(started)
		<-ctx.Done()
		cancelled <- context.Cause(ctx)
		return nil
	}})
	d.AddFile(pathA, nil)
	d.AddFile(pathB, nil)
	c := connect(t, d)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-started; cancel() }()
	if _, err := c.BuildDerivation(ctx, pathDrv, derivation(), daemon.BuildNormal, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v", err)
	}
	if err := <-cancelled; !errors.Is(err, daemon.ErrClientGone) {
		t.Errorf("the build saw %v", err)
	}
	if _, _, ok := d.Path(pathOut); ok {
		t.Error("the cancelled build has an output")
	}
}

// Nix 2.26 fetches the outputs of a build over seven more connections, each with
// nothing but these two operations.
func TestEightFetchConnections(t *testing.T) {
	t.Parallel()
	d := start(t, daemontest.Options{})
	big := bytes.Repeat([]byte("contents"), 100000)
	d.AddFile(pathOut, big)
	_, want, _ := d.Path(pathOut)
	var wg sync.WaitGroup
	for range 8 {
		c := connect(t, d)
		wg.Go(func() {
			info, ok, err := c.QueryPathInfo(t.Context(), pathOut, nil)
			if err != nil || !ok || info.NARSize != uint64(len(want)) {
				t.Errorf("info %v, %v", info, err)
			}
			var b bytes.Buffer
			if _, err := c.NARFromPath(t.Context(), pathOut, &b, nil); err != nil || !bytes.Equal(b.Bytes(), want) {
				t.Errorf("archive of %d bytes, %v", b.Len(), err)
			}
		})
	}
	wg.Wait()
	if d.Sessions() != 8 {
		t.Errorf("%d sessions", d.Sessions())
	}
}

// Nix from 2.35 leaves the upload out when nothing is missing.
func TestBuildWithoutUpload(t *testing.T) {
	t.Parallel()
	d := start(t, daemontest.Options{Build: func(_ context.Context, b *daemontest.Build) *daemon.BuildResult {
		if _, err := b.Output("dev", nil); err == nil {
			t.Error("there is no output dev")
		}
		return &daemon.BuildResult{Status: 16, ErrorMessage: "cancelled"}
	}})
	d.AddFile(pathA, nil)
	d.AddFile(pathB, nil)
	c := connect(t, d)
	if got, err := c.QueryValidPaths(t.Context(), []string{pathA, pathB}, false, nil); err != nil || len(got) != 2 {
		t.Fatalf("valid: %v, %v", got, err)
	}
	result, err := c.BuildDerivation(t.Context(), pathDrv, derivation(), daemon.BuildNormal, nil)
	if err != nil || result.Status != daemon.StatusMiscFailure || result.ErrorMessage != "cancelled" {
		t.Errorf("result %+v, %v", result, err)
	}
	if _, ok, err := c.QueryPathInfo(t.Context(), pathOut, nil); ok || err != nil {
		t.Errorf("an output of a failed build: %t, %v", ok, err)
	}
	var remote *daemon.RemoteError
	if _, err := c.NARFromPath(t.Context(), pathOut, io.Discard, nil); !errors.As(err, &remote) {
		t.Errorf("archive of a path that is not there: %v", err)
	}
}

func TestTooOldVersion(t *testing.T) {
	t.Parallel()
	d := start(t, daemontest.Options{Version: 0x115})
	_, err := daemon.NewClient(t.Context(), d.Dial(), daemon.ClientOptions{})
	var ve *daemon.VersionError
	if !errors.As(err, &ve) || ve.Version != 0x115 {
		t.Errorf("error = %v", err)
	}
}
