// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemontest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

// entry is a path in the store.
type entry struct {
	info    daemon.PathInfo
	archive []byte
}

// FileNAR returns the archive of a regular file.
func FileNAR(contents []byte) []byte {
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	for _, s := range []string{"nix-archive-1", "(", "type", "regular", "contents", string(contents), ")"} {
		w.String(s)
	}
	_ = w.Flush() // a bytes.Buffer takes everything
	return b.Bytes()
}

// FileInfo returns the path info of a regular file and its archive.
func FileInfo(path string, contents []byte, references ...string) (daemon.PathInfo, []byte) {
	archive := FileNAR(contents)
	return daemon.PathInfo{
		Path:       path,
		NARHash:    Hash(archive),
		NARSize:    uint64(len(archive)),
		References: references,
	}, archive
}

// Hash returns the SHA-256 of b in base 16.
func Hash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Add puts a path into the store, unchecked.
func (d *Daemon) Add(info daemon.PathInfo, archive []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.store[info.Path] = entry{info: info, archive: archive}
}

// AddFile puts a regular file into the store.
func (d *Daemon) AddFile(path string, contents []byte, references ...string) {
	d.Add(FileInfo(path, contents, references...))
}

// Delete removes a path from the store, as garbage collection would.
func (d *Daemon) Delete(path string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.store, path)
}

// Path returns a path of the store and its archive.
func (d *Daemon) Path(path string) (daemon.PathInfo, []byte, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e, ok := d.store[path]
	return e.info, e.archive, ok
}

// valid returns those of paths that the store has, after fetching what it can if
// that is asked for.
func (d *Daemon) valid(paths []string, substitute bool) []string {
	var found []string
	for _, p := range paths {
		_, _, ok := d.Path(p)
		if !ok && substitute && slices.Contains(d.opts.Substitutes, p) {
			d.AddFile(p, []byte(p))
			ok = true
		}
		if ok {
			found = append(found, p)
		}
	}
	return found
}

// receive takes an upload into the store. It holds what it takes.
func (d *Daemon) receive(up *daemon.AddMultipleToStore, hold func(...string)) error {
	for {
		info, archive, err := up.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if d.opts.Trust == daemon.NotTrusted && info.CA == "" {
			return fmt.Errorf("cannot add path '%s' because it lacks a signature by a trusted key", info.Path)
		}
		b, err := io.ReadAll(archive)
		if err != nil {
			return err
		}
		if got := Hash(b); got != info.NARHash {
			return fmt.Errorf("hash mismatch importing path '%s'; specified: %s, got: %s", info.Path, info.NARHash, got)
		}
		for _, r := range info.References {
			if _, _, ok := d.Path(r); !ok && r != info.Path {
				return fmt.Errorf("path '%s' is not valid", r)
			}
		}
		hold(info.Path)
		d.Add(*info, b)
	}
}
