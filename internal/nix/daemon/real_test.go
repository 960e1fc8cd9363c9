// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
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

// tooOld is in the versions of Nix that are older than what the codec speaks with. The
// lab keeps one to see how it is refused.
const tooOld = " 2.3."

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
		if version, err := os.ReadFile(r); err != nil || strings.Contains(string(version), tooOld) {
			continue
		}
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
	return pipeTo(t, cmd)
}

// pipeTo starts a command as a connection; its errors go to the test's log.
func pipeTo(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
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
			t.Logf("nix-daemon: %s", stderr.String())
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
