// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package inventory

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"nixbuilder.io/nix-builder-operator/internal/nix/machines"
)

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// receive waits for the next document.
func receive(t *testing.T, documents <-chan Document) Document {
	t.Helper()
	select {
	case document, ok := <-documents:
		if !ok {
			t.Fatal("the channel is closed")
		}
		return document
	case <-time.After(patience):
		t.Fatal("no document came")
	}
	panic("not reached")
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func encode(t *testing.T, names ...string) string {
	t.Helper()
	text, err := Encode(of(names...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// watchFile watches for real, without the help of polling, until the test's
// end, and waits then for the channel to be closed.
func watchFile(t *testing.T, path string, opts WatchOptions) <-chan Document {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	opts.Debounce, opts.Poll = 5*time.Millisecond, time.Hour
	documents := Watch(ctx, path, opts)
	t.Cleanup(func() {
		cancel()
		for range documents {
		}
	})
	return documents
}

func TestWatchRename(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "builders.json")
	write(t, path, encode(t, "a"))
	documents := watchFile(t, path, WatchOptions{})
	if diff := cmp.Diff(of("a"), receive(t, documents)); diff != "" {
		t.Fatalf("first document (-want +got):\n%s", diff)
	}
	for _, name := range []string{"b", "c"} {
		write(t, path+".new", encode(t, name))
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(of(name), receive(t, documents)); diff != "" {
			t.Fatalf("document after a rename (-want +got):\n%s", diff)
		}
	}
}

// publish replaces the files of a ConfigMap volume as the kubelet does: a new
// directory, then a link to it renamed over ..data, then the old one removed.
func publish(t *testing.T, volume, version, text string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(filepath.Join(volume, version), 0o755))
	write(t, filepath.Join(volume, version, "builders.json"), text)
	old, _ := os.Readlink(filepath.Join(volume, "..data"))
	must(os.Symlink(version, filepath.Join(volume, "..data_tmp")))
	must(os.Rename(filepath.Join(volume, "..data_tmp"), filepath.Join(volume, "..data")))
	if old == "" {
		must(os.Symlink(filepath.Join("..data", "builders.json"), filepath.Join(volume, "builders.json")))
		return
	}
	must(os.RemoveAll(filepath.Join(volume, old)))
}

func TestWatchConfigMapVolume(t *testing.T) {
	t.Parallel()
	volume := t.TempDir()
	// The ConfigMap is optional and not there yet.
	documents := watchFile(t, filepath.Join(volume, "builders.json"), WatchOptions{})
	for _, version := range []string{"..2026_1", "..2026_2", "..2026_3"} {
		name := strings.TrimLeft(version, ".")
		publish(t, volume, version, encode(t, name))
		if diff := cmp.Diff(of(name), receive(t, documents)); diff != "" {
			t.Fatalf("document of version %s (-want +got):\n%s", version, diff)
		}
	}
}

func TestWatchBrokenVersion(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "builders.json")
	var log bytes.Buffer
	outcomes := make(chan Outcome, 10)
	documents := watchFile(t, path, WatchOptions{
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
		OnRead: func(outcome Outcome) { outcomes <- outcome },
	})
	expect := func(check func(error) bool, endpoints int) {
		t.Helper()
		select {
		case outcome := <-outcomes:
			if !check(outcome.Err) || len(outcome.Document.Builders) != endpoints {
				t.Fatalf("outcome %+v is not as it should be, with %d endpoints", outcome, endpoints)
			}
		case <-time.After(patience):
			t.Fatal("no outcome was reported")
		}
	}
	replace := func(text string) {
		t.Helper()
		write(t, path+".new", text)
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	absent := func(err error) bool { return errors.Is(err, fs.ErrNotExist) }
	good := func(err error) bool { return err == nil }
	expect(absent, 0)
	replace("{")
	expect(func(err error) bool { return err != nil && !absent(err) }, 0)
	if strings.Contains(log.String(), "Kept") {
		t.Errorf("the log says that a list is kept, though there was none:\n%s", &log)
	}
	replace(encode(t, "a"))
	expect(good, 1)
	receive(t, documents)
	replace(`{"schemaVersion": 7}`)
	expect(func(err error) bool { return errors.As(err, new(*VersionError)) }, 1)
	replace("ssh-ng://h - - many")
	expect(func(err error) bool { return errors.As(err, new(*machines.ParseError)) }, 1)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	expect(absent, 1)
	replace(encode(t, "b"))
	expect(good, 1)
	if diff := cmp.Diff(of("b"), receive(t, documents)); diff != "" {
		t.Errorf("document after the repair (-want +got):\n%s", diff)
	}
	for _, want := range []string{"Waiting for the list", "there has been no good one yet", "Kept the last good list", "schema version 7", `\"many\" is not a number`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %q:\n%s", want, &log)
		}
	}
}

func TestWatchMachinesFileWithInclude(t *testing.T) {
	t.Parallel()
	path, more := filepath.Join(t.TempDir(), "machines"), filepath.Join(t.TempDir(), "more")
	write(t, path, "ssh-ng://a x86_64-linux\nunix:///x\n@"+more+"\n")
	var unusable []Unusable
	documents := watchFile(t, path, WatchOptions{OnRead: func(outcome Outcome) { unusable = outcome.Unusable }})
	if document := receive(t, documents); len(document.Builders) != 1 {
		t.Fatalf("document %v, want one endpoint: the included file is not there", document)
	}
	if len(unusable) != 1 || unusable[0].URI != "unix:///x" {
		t.Errorf("unusable %v, want the unix socket", unusable)
	}
	write(t, more, "ssh-ng://b x86_64-linux\n")
	if document := receive(t, documents); len(document.Builders) != 2 {
		t.Fatalf("document %v, want the included endpoint too", document)
	}
}

func TestReadFileRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		write(t, path, text)
		return path
	}
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct{ path, want string }{
		"a pipe":             {pipe, "is not a regular file"},
		"a directory":        {dir, "is not a regular file"},
		"too large":          {file("large", strings.Repeat("#", MaxSize+1)), "is larger than 1048576 bytes"},
		"an included pipe":   {file("a", "@"+pipe), "a:1:1: read included file"},
		"a relative include": {file("b", "@more"), "only absolute paths can be included"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := readFile(tc.path, FileOptions{})
			if got.outcome.Err == nil || !strings.Contains(got.outcome.Err.Error(), tc.want) {
				t.Errorf("error %v does not say %q", got.outcome.Err, tc.want)
			}
		})
	}
}
