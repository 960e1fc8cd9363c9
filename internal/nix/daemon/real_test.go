// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

// realTimeout bounds a test with a real Nix.
const realTimeout = 2 * time.Minute

// enterScript runs a command in a file system of its own, over the packages of a
// Nix: nothing that it does reaches the machine, and it ends with the test. The
// root is moved rather than changed, because Nix returns to the root of its
// namespace.
const enterScript = `set -e
lower=$1; shared=$2; shift 2
m=$shared/../m; mkdir "$m"
mount -t tmpfs none "$m"
mkdir "$m/upper" "$m/work" "$m/root"
mount -t overlay -o "lowerdir=$lower,upperdir=$m/upper,workdir=$m/work" none "$m/root"
mkdir -p "$m/root/proc" "$m/root/dev" "$m/root/tmp" "$m/root/nix" "$m/root/etc/nix" "$m/root/shared"
mount -t proc proc "$m/root/proc"
mount --rbind /dev "$m/root/dev"
mount -t tmpfs none "$m/root/tmp"
mount -t tmpfs none "$m/root/nix"
mount --bind "$shared" "$m/root/shared"
cat > "$m/root/etc/nix/nix.conf" <<EOT
build-users-group =
sandbox = false
substituters =
experimental-features = nix-command daemon-trust-override
EOT
mkdir "$m/root/old"
cd "$m/root"
pivot_root . old
umount -l /old
exec "$@"
`

// realNix is an installation of Nix.
type realNix struct {
	name, root string
}

// realNixes finds what there is: the Nix of this machine and the unpacked packages
// that the project's lab keeps.
func realNixes(t *testing.T) []realNix {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("not root: real nix-daemons are not tested")
	}
	var found []realNix
	if _, err := exec.LookPath("nix-daemon"); err == nil {
		found = append(found, realNix{"host", "/"})
	}
	cache, _ := os.UserCacheDir()
	roots, _ := filepath.Glob(filepath.Join(cache, "nix-builder-operator", "rootfs-*", "nix-version"))
	for _, r := range roots {
		found = append(found, realNix{filepath.Base(filepath.Dir(r)), filepath.Dir(r)})
	}
	if len(found) == 0 {
		t.Skip("nix-daemon is not installed: real nix-daemons are not tested")
	}
	return found
}

// command prepares a command inside the installation. The shared directory is
// /shared there.
func (n realNix) command(ctx context.Context, t *testing.T, args ...string) (cmd *exec.Cmd, shared string) {
	t.Helper()
	shared = filepath.Join(t.TempDir(), "shared")
	if err := os.Mkdir(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd = exec.CommandContext(ctx, "unshare", append([]string{
		"-m", "-p", "-f", "--kill-child", "sh", "-c", enterScript, "enter", n.root, shared,
	}, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "NIX_REMOTE=local", "HOME=/tmp", "LC_ALL=C"}
	cmd.WaitDelay = 10 * time.Second
	return cmd, shared
}

// process is a running command as a connection.
type process struct {
	io.ReadCloser
	in   io.WriteCloser
	wait func() error
}

func (p *process) Write(b []byte) (int, error) { return p.in.Write(b) }
func (p *process) Close() error                { return errors.Join(p.in.Close(), p.ReadCloser.Close()) }

// startDaemon starts nix-daemon --stdio; its errors go to the test's log.
func (n realNix) startDaemon(ctx context.Context, t *testing.T, args ...string) *process {
	t.Helper()
	cmd, _ := n.command(ctx, t, append([]string{"nix-daemon", "--stdio"}, args...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{ReadCloser: out, in: in, wait: cmd.Wait}
	t.Cleanup(func() {
		_ = p.Close()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("nix-daemon of %s: %s", n.name, stderr.String())
		}
	})
	return p
}

func eachNix(t *testing.T, test func(t *testing.T, n realNix)) {
	t.Helper()
	for _, n := range realNixes(t) {
		t.Run(n.name, func(t *testing.T) {
			t.Parallel()
			test(t, n)
		})
	}
}

func realContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), realTimeout)
	t.Cleanup(cancel)
	return ctx
}

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

// relayScript is the remote program of a real client: it joins its standard input
// and output to two pipes of the test.
const relayScript = `#!/bin/sh
exec 3<&0
cat /shared/down &
cat <&3 >/shared/up
wait
`

// pipes is the test's end of the relay.
type pipes struct{ up, down *os.File }

func (p pipes) Read(b []byte) (int, error)  { return p.up.Read(b) }
func (p pipes) Write(b []byte) (int, error) { return p.down.Write(b) }
func (p pipes) Close() error                { return errors.Join(p.up.Close(), p.down.Close()) }

// serveRelay serves the next connection of the relay in shared.
func serveRelay(t *testing.T, shared string, d *daemontest.Daemon) <-chan error {
	t.Helper()
	if err := os.WriteFile(filepath.Join(shared, "relay"), []byte(relayScript), 0o755); err != nil {
		t.Fatal(err)
	}
	up, down := filepath.Join(shared, "up"), filepath.Join(shared, "down")
	if out, err := exec.Command("mkfifo", up, down).CombinedOutput(); err != nil {
		t.Fatalf("mkfifo: %v: %s", err, out)
	}
	served := make(chan error, 1)
	go func() {
		var p pipes
		var err error
		if p.up, err = os.OpenFile(up, os.O_RDONLY, 0); err == nil {
			p.down, err = os.OpenFile(down, os.O_WRONLY, 0)
		}
		if err == nil {
			err = d.Serve(p)
		}
		served <- err
	}()
	return served
}

const relayStore = "ssh-ng://localhost?remote-program=/shared/relay"

// TestRealClientPing lets real clients shake hands with our server.
func TestRealClientPing(t *testing.T) {
	t.Parallel()
	eachNix(t, func(t *testing.T, n realNix) {
		ctx := realContext(t)
		d := daemontest.New(daemontest.Options{Trust: daemon.Trusted, DaemonVersion: "2.99.dispatcher"})
		defer d.Close()
		cmd, shared := n.command(ctx, t, "sh", "-c",
			"nix store info --store '"+relayStore+"' || nix store ping --store '"+relayStore+"'")
		if n.root == "/" || strings.Contains(n.name, "bookworm") {
			cmd, shared = n.command(ctx, t, "nix", "store", "ping", "--store", relayStore)
		}
		served := serveRelay(t, shared, d)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("ping: %v\n%s", err, out)
		}
		if err := <-served; err != nil {
			t.Errorf("server: %v", err)
		}
		if ops := d.Operations(); len(ops) != 0 {
			t.Errorf("operations %v", ops)
		}
		t.Logf("%s", out)
	})
}

// TestRealClientBuild lets real clients build on our server.
func TestRealClientBuild(t *testing.T) {
	t.Parallel()
	eachNix(t, func(t *testing.T, n realNix) {
		ctx := realContext(t)
		d := daemontest.New(daemontest.Options{Trust: daemon.Trusted, Build: func(_ context.Context, b *daemontest.Build) *daemon.BuildResult {
			out, err := b.Output("out", []byte("made in memory\n"))
			if err != nil {
				return &daemon.BuildResult{Status: daemon.StatusMiscFailure, ErrorMessage: err.Error()}
			}
			_ = b.Log("a line of the log")
			// The dummy form of a realisation that Nix writes from 2.35 on.
			id := "sha256:" + strings.Repeat("0", 64) + "!out"
			return &daemon.BuildResult{BuiltOutputs: []daemon.BuiltOutput{{
				ID: id, Realisation: fmt.Sprintf(`{"dependentRealisations":{},"id":%q,"outPath":%q,"signatures":[]}`, id, filepath.Base(out)),
			}}}
		}})
		defer d.Close()
		expr := `derivation { name = "x"; system = "x86_64-linux"; builder = "/bin/sh"; args = [ (builtins.toFile "in" "input") ]; }`
		cmd, shared := n.command(ctx, t, "sh", "-c", `cat $(nix-build --no-out-link --max-jobs 0 --builders "$1" -E "$2")`,
			"build", relayStore+" x86_64-linux - 1 1", expr)
		served := serveRelay(t, shared, d)
		out, err := cmd.CombinedOutput()
		if err != nil || !bytes.HasSuffix(out, []byte("made in memory\n")) || !bytes.Contains(out, []byte("a line of the log")) {
			t.Fatalf("build: %v\n%s", err, out)
		}
		if err := <-served; err != nil {
			t.Errorf("server: %v", err)
		}
		if got, want := fmt.Sprint(d.Operations()), fmt.Sprint([]daemon.Operation{31, 44, 36, 26, 38}); got != want {
			t.Errorf("operations %s, want %s", got, want)
		}
	})
}
