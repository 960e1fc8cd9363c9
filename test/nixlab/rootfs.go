// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixlab

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Version names one of the Nix versions that the lab can run.
type Version string

// The versions, oldest first. Debian's testing suite moves, so what Newest
// stands for is only known once its root file system is there ([RootFS].Nix).
const (
	Nix28  Version = "2.8"
	Nix226 Version = "2.26"
	Newest Version = "newest"
	// Nix23 is too old to be used as a builder.
	Nix23 Version = "2.3"
)

// Versions returns all versions that can be used, oldest first.
func Versions() []Version { return []Version{Nix28, Nix226, Newest} }

func (v Version) suite() (string, error) {
	switch v {
	case Nix23:
		return "bullseye", nil
	case Nix28:
		return "bookworm", nil
	case Nix226:
		return "trixie", nil
	case Newest:
		return "testing", nil
	default:
		return "", fmt.Errorf("the Nix lab has no version %q, only 2.3, 2.8, 2.26 and newest", string(v))
	}
}

// RootFS is an unpacked root file system. It is shared by every lab of the
// machine and never written to.
type RootFS struct {
	Version Version
	// Dir is where it lies.
	Dir string
	// Nix is the exact version of Nix in it, such as 2.26.3.
	Nix string
}

//go:embed scripts/rootfs.sh
var rootfsScript []byte

// PrepareRootFS returns the root file systems of the versions, in that order.
// Those not in the cache are made, in parallel: about 20 s the first time. The
// cache lies below XDG_CACHE_HOME or ~/.cache; the recipe is part of a
// directory's name, so a changed recipe makes a new one. Progress is told line
// by line; it may be nil.
func PrepareRootFS(ctx context.Context, progress func(string), versions ...Version) ([]RootFS, error) {
	if progress == nil {
		progress = func(string) {}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("root file systems of the Nix lab: %w", err)
	}
	cache = filepath.Join(cache, "nix-builder-operator")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, fmt.Errorf("root file systems of the Nix lab: %w", err)
	}
	var group sync.WaitGroup
	all := make([]RootFS, len(versions))
	failures := make([]error, len(versions))
	for i, version := range versions {
		group.Go(func() { all[i], failures[i] = prepareOne(ctx, progress, cache, version) })
	}
	group.Wait()
	return all, errors.Join(failures...)
}

func prepareOne(ctx context.Context, progress func(string), cache string, version Version) (RootFS, error) {
	suite, err := version.suite()
	if err != nil {
		return RootFS{}, err
	}
	recipe := sha256.Sum256(append(bytes.Clone(rootfsScript), suite...))
	dir := filepath.Join(cache, "rootfs-"+suite+"-"+hex.EncodeToString(recipe[:6]))
	if root, err := openRootFS(version, dir); err == nil {
		return root, nil
	}
	unlock, err := lockFile(ctx, dir+".lock", func() {
		progress(fmt.Sprintf("Waiting for another process that makes the %s root file system", suite))
	})
	if err != nil {
		return RootFS{}, fmt.Errorf("root file system with Nix %s: %w", version, err)
	}
	defer unlock()
	if root, err := openRootFS(version, dir); err == nil {
		return root, nil
	}
	progress(fmt.Sprintf("Unpacking Debian %s with its Nix (once, about 20 s)", suite))
	began := time.Now()
	if err := makeRootFS(ctx, suite, dir); err != nil {
		return RootFS{}, fmt.Errorf("root file system with Nix %s: %w", version, err)
	}
	root, err := openRootFS(version, dir)
	if err != nil {
		return RootFS{}, err
	}
	progress(fmt.Sprintf("Unpacked Debian %s: Nix %s (%.0f s)", suite, root.Nix, time.Since(began).Seconds()))
	return root, nil
}

// openRootFS reads what the recipe left about the Nix in it.
func openRootFS(version Version, dir string) (RootFS, error) {
	text, err := os.ReadFile(filepath.Join(dir, "nix-version"))
	if err != nil {
		return RootFS{}, err
	}
	words := strings.Fields(string(text))
	if len(words) == 0 {
		return RootFS{}, fmt.Errorf("root file system %s: it does not say which Nix it has", dir)
	}
	return RootFS{Version: version, Dir: dir, Nix: words[len(words)-1]}, nil
}

// makeRootFS runs the recipe beside dir and renames the result, so that dir
// is complete whenever it exists. The caller holds the lock.
func makeRootFS(ctx context.Context, suite, dir string) error {
	mirror, err := debianMirror("/etc/apt")
	if err != nil {
		return err
	}
	stale, err := filepath.Glob(dir + ".making-*")
	if err != nil {
		return err
	}
	for _, left := range stale {
		if err := os.RemoveAll(left); err != nil {
			return fmt.Errorf("remove what an interrupted run left: %w", err)
		}
	}
	work, err := os.MkdirTemp(filepath.Dir(dir), filepath.Base(dir)+".making-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	script := filepath.Join(work, "rootfs.sh")
	if err := os.WriteFile(script, rootfsScript, 0o755); err != nil {
		return err
	}
	command := exec.CommandContext(ctx, "bash", script, suite, mirror, filepath.Join(work, "root"))
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Cancel = func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGTERM) }
	command.WaitDelay = 10 * time.Second
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("mmdebstrap %s: %w\n%s", suite, err, tail(output, 2000))
	}
	return os.Rename(filepath.Join(work, "root"), dir)
}

// lockFile takes the lock that path stands for, waiting as long as ctx lasts.
// Waiting is called once if there is a wait.
func lockFile(ctx context.Context, path string, waiting func()) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for told := false; ; told = true {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { file.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			file.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if !told {
			waiting()
		}
		select {
		case <-ctx.Done():
			file.Close()
			return nil, context.Cause(ctx)
		case <-ticker.C:
		}
	}
}

// tail returns the end of an output, for error messages.
func tail(output []byte, limit int) string {
	output = bytes.TrimSpace(output)
	if len(output) > limit {
		output = output[len(output)-limit:]
	}
	return string(output)
}
