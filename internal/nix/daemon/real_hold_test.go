// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
)

// collectScript adds two paths and becomes a daemon, beside which the garbage
// collector runs when the test says so.
const collectScript = `set -e
for name in first second; do echo $name >/tmp/$name; nix-store --add /tmp/$name; done >/shared/new
mv /shared/new /shared/paths
(
  while [ ! -e /shared/collect ]; do sleep 0.05; done
  nix-store --gc >/shared/log 2>&1
  mv /shared/log /shared/collected
) >/dev/null &
exec nix-daemon --stdio
`

// await returns the content of a file as soon as it is there.
func await(ctx context.Context, t *testing.T, file string) string {
	t.Helper()
	for {
		content, err := os.ReadFile(file)
		if err == nil {
			return string(content)
		}
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// A path that a connection holds survives the garbage collector of every real Nix,
// and one that is not there is no error.
func TestRealDaemonHold(t *testing.T) {
	t.Parallel()
	eachNix(t, func(t *testing.T, n realNix) {
		ctx := realContext(t)
		cmd, shared := n.command(ctx, t, "sh", "-c", collectScript)
		c, err := daemon.NewClient(ctx, pipeTo(t, cmd), daemon.ClientOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		paths := strings.Fields(await(ctx, t, filepath.Join(shared, "paths")))
		if len(paths) != 2 {
			t.Fatalf("paths %q", paths)
		}
		got, err := c.HoldPaths(ctx, []string{paths[0], realOther}, nil)
		if diff := cmp.Diff(paths[:1], got); diff != "" || err != nil {
			t.Fatalf("error %v, valid (-want +got):\n%s", err, diff)
		}
		if err := os.WriteFile(filepath.Join(shared, "collect"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		log := await(ctx, t, filepath.Join(shared, "collected"))
		infos, err := c.QueryPathInfos(ctx, paths[:1], nil)
		if err != nil || infos[0] == nil || infos[0].Path != paths[0] {
			t.Errorf("infos %v, %v; the collector said:\n%s", infos, err, log)
		}
		if got, err := c.QueryValidPaths(ctx, paths, false, nil); err != nil || cmp.Diff(paths[:1], got) != "" {
			t.Errorf("valid after the collection: %v, %v, want the held one only; the collector said:\n%s", got, err, log)
		}
	})
}

// More requests at once than any buffer between the ends has room for.
func TestRealDaemonLargeFlight(t *testing.T) {
	t.Parallel()
	eachNix(t, func(t *testing.T, n realNix) {
		ctx := realContext(t)
		c, err := daemon.NewClient(ctx, n.startDaemon(ctx, t), daemon.ClientOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		var paths []string
		for i := range 10000 {
			paths = append(paths, fmt.Sprintf("/nix/store/%032d-x", i))
		}
		if got, err := c.HoldPaths(ctx, paths, nil); err != nil || len(got) != 0 {
			t.Errorf("valid: %v, %v", got, err)
		}
		infos, err := c.QueryPathInfos(ctx, paths, nil)
		if err != nil || len(infos) != len(paths) || infos[0] != nil {
			t.Errorf("%d infos, %v", len(infos), err)
		}
	})
}
