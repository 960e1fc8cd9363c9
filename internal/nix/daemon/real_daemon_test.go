// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

const (
	realInput = "/nix/store/00000000000000000000000000000000-input"
	realLarge = "/nix/store/11111111111111111111111111111111-large"
	realOut   = "/nix/store/22222222222222222222222222222222-x"
	realDrv   = "/nix/store/33333333333333333333333333333333-x.drv"
	realOther = "/nix/store/44444444444444444444444444444444-other"
)

func realDerivation(script string) *daemon.BasicDerivation {
	return &daemon.BasicDerivation{
		Outputs:      []daemon.DerivationOutput{{Name: "out", Path: realOut}},
		InputSources: []string{realInput, realLarge},
		Platform:     "x86_64-linux", Builder: "/bin/sh", Args: []string{"-c", script},
		Env: []daemon.EnvVar{{Name: "out", Value: realOut}, {Name: "name", Value: "x"}},
	}
}

// realSource uploads realInput and a larger path that refers to it.
func realSource() daemon.PathSource {
	next := 0
	return daemon.PathSource{Count: 2, Next: func() (daemon.PathInfo, io.Reader, error) {
		info, archive := daemontest.FileInfo(realInput, []byte("input\n"))
		if next++; next == 2 {
			info, archive = daemontest.FileInfo(realLarge, bytes.Repeat([]byte("large "), 2<<20), realInput)
		}
		return info, bytes.NewReader(archive), nil
	}}
}

func TestRealDaemon(t *testing.T) {
	t.Parallel()
	eachNix(t, func(t *testing.T, n realNix) {
		ctx := realContext(t)
		c, err := daemon.NewClient(ctx, n.startDaemon(ctx, t), daemon.ClientOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		peer := c.Peer()
		t.Logf("Nix %s speaks %s, %s", peer.DaemonVersion, peer.Version, peer.Trust)
		if known := peer.Version >= daemon.Protocol; known != (peer.Trust == daemon.Trusted) {
			t.Errorf("trust %s at %s", peer.Trust, peer.Version)
		}
		if err := c.BuildPaths(ctx, nil, daemon.BuildRepair, nil); err != nil {
			t.Errorf("the test of trust: %v", err)
		}
		if got, err := c.QuerySubstitutablePaths(ctx, []string{realInput}, nil); err != nil || len(got) != 0 {
			t.Errorf("substitutable: %v, %v", got, err)
		}
		refusedUpload(ctx, t, c)
		if err := c.AddMultipleToStore(ctx, daemon.PathSource{}, nil); err != nil {
			t.Errorf("upload of nothing: %v", err)
		}
		if err := c.AddMultipleToStore(ctx, realSource(), nil); err != nil {
			t.Fatalf("upload: %v", err)
		}
		got, err := c.QueryValidPaths(ctx, []string{realInput, realLarge, realOther}, false, nil)
		if err != nil || len(got) != 2 {
			t.Errorf("valid after the upload: %v, %v", got, err)
		}
		failedBuild(ctx, t, c)
		goodBuild(ctx, t, c)

		var remote *daemon.RemoteError
		if _, ok, err := c.QueryPathInfo(ctx, realOther, nil); ok || err != nil {
			t.Errorf("info of a path that is not there: %t, %v", ok, err)
		}
		if _, err := c.NARFromPath(ctx, realOther, io.Discard, nil); !errors.As(err, &remote) {
			t.Errorf("archive of a path that is not there: %v", err)
		}
	})
}

// refusedUpload sends a path whose hash is wrong: the daemon refuses it and
// understands what comes next.
func refusedUpload(ctx context.Context, t *testing.T, c *daemon.Client) {
	t.Helper()
	src := realSource()
	next := src.Next
	src.Next = func() (daemon.PathInfo, io.Reader, error) {
		info, r, err := next()
		info.NARHash = daemontest.Hash(nil)
		return info, r, err
	}
	var remote *daemon.RemoteError
	if err := c.AddMultipleToStore(ctx, src, nil); !errors.As(err, &remote) || !strings.Contains(remote.Message, "hash mismatch") {
		t.Errorf("upload with a wrong hash: %v", err)
	}
	if got, err := c.QueryValidPaths(ctx, []string{realInput}, false, nil); err != nil || len(got) != 0 {
		t.Errorf("valid after the refusal: %v, %v", got, err)
	}
}

func failedBuild(ctx context.Context, t *testing.T, c *daemon.Client) {
	t.Helper()
	result, err := c.BuildDerivation(ctx, realDrv, realDerivation("echo going wrong; exit 3"), daemon.BuildNormal, nil)
	if err != nil || result.Status != daemon.StatusPermanentFailure || !strings.Contains(result.ErrorMessage, "exit code 3") {
		t.Errorf("failing build: %+v, %v", result, err)
	}
}

func goodBuild(ctx context.Context, t *testing.T, c *daemon.Client) {
	t.Helper()
	var lines []string
	sink := func(m daemon.Message) error {
		if r, ok := m.(daemon.ActivityResult); ok && r.Type == daemon.ResultBuildLogLine {
			lines = append(lines, r.Fields[0].Text)
		}
		return nil
	}
	script := "echo line one; echo line two; read x < " + realInput + "; echo built from $x > $out"
	result, err := c.BuildDerivation(ctx, realDrv, realDerivation(script), daemon.BuildNormal, sink)
	if err != nil || !result.Status.Success() {
		t.Fatalf("build: %+v, %v", result, err)
	}
	if got := strings.Join(lines, "|"); got != "line one|line two" {
		t.Errorf("log %q", got)
	}
	if len(result.BuiltOutputs) != 1 || result.BuiltOutputs[0].Name() != "out" {
		t.Errorf("outputs %+v", result.BuiltOutputs)
	}
	info, ok, err := c.QueryPathInfo(ctx, realOut, nil)
	if err != nil || !ok {
		t.Fatalf("info of the output: %v, %t, %v", info, ok, err)
	}
	var archive bytes.Buffer
	if _, err := c.NARFromPath(ctx, realOut, &archive, nil); err != nil {
		t.Fatal(err)
	}
	if want := daemontest.FileNAR([]byte("built from input\n")); !bytes.Equal(archive.Bytes(), want) {
		t.Errorf("output %q", archive.Bytes())
	}
	if info.NARHash != daemontest.Hash(archive.Bytes()) || info.NARSize != uint64(archive.Len()) {
		t.Errorf("info %+v of an archive of %d bytes", info, archive.Len())
	}
}

// A build that is given up ends on the daemon too.
func TestRealDaemonCancel(t *testing.T) {
	t.Parallel()
	eachNix(t, func(t *testing.T, n realNix) {
		ctx := realContext(t)
		p := n.startDaemon(ctx, t)
		c, err := daemon.NewClient(ctx, p, daemon.ClientOptions{})
		if err != nil {
			t.Fatal(err)
		}
		// Nix 2.34.8 can miss a hang-up in the first milliseconds of a build and
		// then notices it only when it has something to say.
		drv := realDerivation("while echo busy; do sleep 0.2; done")
		drv.Env = append(drv.Env, daemon.EnvVar{Name: "PATH", Value: "/bin:/usr/bin"})
		drv.InputSources = nil
		userGone := errors.New("user gone")
		buildCtx, cancel := context.WithCancelCause(ctx)
		_, err = c.BuildDerivation(buildCtx, realDrv, drv, daemon.BuildNormal, func(m daemon.Message) error {
			if r, ok := m.(daemon.ActivityResult); ok && r.Type == daemon.ResultBuildLogLine {
				cancel(userGone)
			}
			return nil
		})
		if !errors.Is(err, userGone) {
			t.Errorf("error = %v", err)
		}
		if err := p.wait(); ctx.Err() != nil {
			t.Errorf("nix-daemon went on: %v", err)
		}
	})
}

func TestRealDaemonUntrusted(t *testing.T) {
	t.Parallel()
	eachNix(t, func(t *testing.T, n realNix) {
		ctx := realContext(t)
		c, err := daemon.NewClient(ctx, n.startDaemon(ctx, t, "--force-untrusted"), daemon.ClientOptions{})
		if err != nil {
			t.Skipf("this Nix cannot be made to distrust us: %v", err)
		}
		defer func() { _ = c.Close() }()
		if c.Peer().Trust != daemon.NotTrusted {
			t.Errorf("peer %+v", c.Peer())
		}
		var remote *daemon.RemoteError
		if err := c.BuildPaths(ctx, nil, daemon.BuildRepair, nil); !errors.As(err, &remote) ||
			!strings.Contains(remote.Message, "repairing is not allowed because you are not in 'trusted-users'") {
			t.Errorf("the test of trust: %v", err)
		}
	})
}
