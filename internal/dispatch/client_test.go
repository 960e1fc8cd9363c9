// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"nixbuilder.io/nix-builder-operator/internal/connect"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

// client is a Nix client: one connection of a build hook.
type client struct {
	*daemon.Client
	t *testing.T
	// said is what the dispatcher or builder has sent besides replies.
	said messages
}

// connect connects as the build hook with that process id does for a line.
func (r *rig) connect(hook uint32, line string) *client {
	r.t.Helper()
	c, err := daemon.NewClient(r.t.Context(), r.dialClient(hook, line), daemon.ClientOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return &client{Client: c, t: r.t}
}

// dialClient connects and sends the header only.
func (r *rig) dialClient(hook uint32, line string) net.Conn {
	r.t.Helper()
	conn, err := r.network.Dial(r.t.Context(), "unix", address)
	if err != nil {
		r.t.Fatal(err)
	}
	target, err := connect.ParseTarget(line)
	if err != nil {
		r.t.Fatal(err)
	}
	header, err := connect.Header{Target: target, Namespace: 1, Hook: connect.Process{PID: hook}}.Append(nil)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := conn.Write(header); err != nil {
		r.t.Fatal(err)
	}
	return conn
}

// upload offers files and sends those that the dispatcher does not have. It
// returns the paths sent.
func (c *client) upload(files ...file) []string {
	c.t.Helper()
	var paths []string
	for _, f := range files {
		paths = append(paths, f.info.Path)
	}
	valid, err := c.QueryValidPaths(c.t.Context(), paths, false, c.said.add)
	if err != nil {
		c.t.Fatal(err)
	}
	missing := slices.DeleteFunc(slices.Clone(files), func(f file) bool { return slices.Contains(valid, f.info.Path) })
	if err := c.send(missing...); err != nil {
		c.t.Fatal(err)
	}
	var sent []string
	for _, f := range missing {
		sent = append(sent, f.info.Path)
	}
	return sent
}

func (c *client) send(files ...file) error {
	next := 0
	return c.AddMultipleToStore(c.t.Context(), daemon.PathSource{
		Count: len(files),
		Next: func() (daemon.PathInfo, io.Reader, error) {
			f := files[next]
			next++
			return f.info, bytes.NewReader(f.nar), nil
		},
	}, c.said.add)
}

// build builds a derivation.
func (c *client) build(d derivation) (*daemon.BuildResult, error) {
	return c.buildUntil(c.t.Context(), d)
}

// buildUntil builds a derivation, or hangs up when ctx ends.
func (c *client) buildUntil(ctx context.Context, d derivation) (*daemon.BuildResult, error) {
	return c.BuildDerivation(ctx, d.path, &d.BasicDerivation, daemon.BuildNormal, c.said.add)
}

// mustBuild builds a derivation, which must succeed, and fetches its outputs.
func (c *client) mustBuild(d derivation) map[string]string {
	c.t.Helper()
	result, err := c.build(d)
	if err != nil {
		c.t.Fatal(err)
	}
	if !result.Status.Success() {
		c.t.Fatalf("build ended with %s: %s", result.Status, result.ErrorMessage)
	}
	contents := map[string]string{}
	for _, out := range d.Outputs {
		contents[out.Name] = c.fetch(out.Path)
	}
	return contents
}

// fetch returns the content of a file that is an output.
func (c *client) fetch(path string) string {
	c.t.Helper()
	info, valid, err := c.QueryPathInfo(c.t.Context(), path, c.said.add)
	if err != nil || !valid {
		c.t.Fatalf("QueryPathInfo of %s: %v, %v", path, valid, err)
	}
	var nar bytes.Buffer
	if _, err := c.NARFromPath(c.t.Context(), path, &nar, c.said.add); err != nil {
		c.t.Fatal(err)
	}
	if got := daemontest.Hash(nar.Bytes()); got != info.NARHash {
		c.t.Fatalf("%s has hash %s, want %s", path, got, info.NARHash)
	}
	return nar.String()
}

// messages collects what a client is told.
type messages struct {
	mu   sync.Mutex
	list []daemon.Message
}

func (m *messages) add(msg daemon.Message) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.list = append(m.list, msg)
	return nil
}

// lines returns the texts shown to the user by the dispatcher itself, without those
// that tell where a build runs.
func (m *messages) lines() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var lines []string
	for _, msg := range m.list {
		if next, ok := msg.(daemon.Next); ok && !strings.HasPrefix(next.Text, "building on ") {
			lines = append(lines, strings.TrimSuffix(next.Text, "\n"))
		}
	}
	return lines
}

// logLines returns the lines of build logs.
func (m *messages) logLines() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var lines []string
	for _, msg := range m.list {
		if r, ok := msg.(daemon.ActivityResult); ok && r.Type == daemon.ResultBuildLogLine {
			lines = append(lines, r.Fields[0].Text)
		}
	}
	return lines
}

// storePath returns a store path for a name.
func storePath(name string) string {
	const digits = "0123456789abcdfghijklmnpqrsvwxyz"
	sum := sha256.Sum256([]byte(name))
	hash := make([]byte, 32)
	for i := range hash {
		hash[i] = digits[sum[i]%32]
	}
	return "/nix/store/" + string(hash) + "-" + name
}

// file is a store path that is a file.
type file struct {
	info daemon.PathInfo
	nar  []byte
}

func newFile(name, content string, references ...string) file {
	info, nar := daemontest.FileInfo(storePath(name), []byte(content), references...)
	return file{info, nar}
}

// derivation is a derivation with its path.
type derivation struct {
	daemon.BasicDerivation
	path string
}

// newDerivation returns a derivation with one output, "out".
func newDerivation(name string, inputs ...file) derivation {
	d := derivation{path: storePath(name + ".drv")}
	d.Platform, d.Builder = system, "/bin/sh"
	d.Outputs = []daemon.DerivationOutput{{Name: "out", Path: storePath(name)}}
	for _, f := range inputs {
		d.InputSources = append(d.InputSources, f.info.Path)
	}
	return d
}

func (d derivation) requiring(features string) derivation {
	d.Env = append(d.Env, daemon.EnvVar{Name: "requiredSystemFeatures", Value: features})
	return d
}
