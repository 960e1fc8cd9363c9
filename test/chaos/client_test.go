// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"nixbuilder.io/nix-builder-operator/test/captured"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// client is a machine with a store of its own that builds.
type client struct {
	*nixlab.Client
	w *world
}

// outcome is how a nix-build has ended.
type outcome struct {
	nixlab.Result
	began, ended time.Time
	// text is all that it printed, as it came.
	text string
}

// build brings the sources of the graph to the client and builds its root there. An
// error is one of the harness; builds that fail have a status.
func (c *client) build(ctx context.Context, g graph, args ...string) (outcome, error) {
	r, err := c.begin(ctx, g, args...)
	if err != nil {
		return outcome{}, err
	}
	return r.wait()
}

// begin is the first half of build.
func (c *client) begin(ctx context.Context, g graph, args ...string) (*running, error) {
	for _, n := range g {
		if n.source > 0 {
			if err := c.WriteFile(n.sourcePath(), string(n.sourceBytes()), 0o644); err != nil {
				return nil, err
			}
		}
	}
	return c.start(ctx, g.expression(), args...), nil
}

// running is a nix-build that goes on.
type running struct {
	output captured.Text
	began  time.Time
	done   chan struct{}
	// from is who builds, graph what; where somebody wants to know.
	from  *client
	graph graph
	// Valid once done is closed.
	result outcome
	err    error
}

// start begins to build an expression. It is interrupted when ctx ends.
func (c *client) start(ctx context.Context, expression string, args ...string) *running {
	r := &running{began: time.Now(), done: make(chan struct{})}
	command, err := c.NixCommand(ctx, append([]string{"nix-build", "--no-out-link", "--expr", expression}, args...)...)
	if err == nil {
		command.Stdout, command.Stderr = &r.output, &r.output
		err = command.Start()
	}
	if err != nil {
		r.err = fmt.Errorf("nix-build on %s: %w", c.Name(), err)
		close(r.done)
		return r
	}
	c.w.running.Go(func() {
		defer close(r.done)
		_ = command.Wait() // the status says it
		r.result = outcome{began: r.began, ended: time.Now(), text: r.output.String()}
		r.result.Status = command.ProcessState.ExitCode()
		if ctx.Err() != nil {
			r.err = fmt.Errorf("nix-build on %s had not ended after %.0f s: %w\n%s",
				c.Name(), time.Since(r.began).Seconds(), context.Cause(ctx), r.result.text)
		}
	})
	return r
}

func (r *running) wait() (outcome, error) {
	<-r.done
	return r.result, r.err
}

// verify compares every output of the graph in the client's store with what the
// harness knows of it, byte by byte.
func (c *client) verify(g graph) error {
	names, err := c.StorePaths()
	if err != nil {
		return err
	}
	paths := map[string]string{}
	for _, name := range names {
		if _, rest, ok := strings.Cut(name, "-"); ok {
			paths[rest] = filepath.Join(c.Store(), "store", name)
		}
	}
	var wrong []error
	for _, n := range g {
		if err := n.compare(paths); err != nil {
			wrong = append(wrong, fmt.Errorf("%s in the store of %s: %w", n.name, c.Name(), err))
		}
	}
	return errors.Join(wrong...)
}

// compare checks the outputs of one node; paths has the places of store paths by
// their names.
func (n *node) compare(paths map[string]string) error {
	out, ok := paths[n.name]
	if !ok {
		return errors.New("missing")
	}
	if !n.tree {
		return sameFile(out, n.want(), 0o444)
	}
	entries, err := os.ReadDir(out)
	if err != nil {
		return err
	}
	if len(entries) != 3 {
		return fmt.Errorf("it has %d files, want 3", len(entries))
	}
	target, err := os.Readlink(filepath.Join(out, "first"))
	wanted := "/nowhere"
	if len(n.needs) > 0 {
		wanted = n.needs[0].name
		if n.needs[0].tree {
			wanted += "/main"
		}
	}
	if !strings.HasSuffix(target, wanted) {
		return fmt.Errorf("its symbolic link leads to %q, want %q (%w)", target, wanted, err)
	}
	return errors.Join(
		sameFile(filepath.Join(out, "main"), n.want(), 0o444),
		sameFile(filepath.Join(out, "program"), n.want(), 0o555),
		n.compareSecond(paths[n.name+"-dev"]),
	)
}

// hashPart is what the harness does not know of a store path.
var hashPart = regexp.MustCompile("/nix/store/[0-9a-z]{32}-")

// compareSecond checks the second output of a tree.
func (n *node) compareSecond(path string) error {
	got, err := os.ReadFile(path)
	want := n.name + "\n"
	for i := range n.mentions {
		want += fmt.Sprintf("%s-mention-%d\n", n.name, i)
	}
	if text := hashPart.ReplaceAllString(string(got), ""); text != want {
		return fmt.Errorf("its second output is %.200q (%w)", text, err)
	}
	return nil
}

// sameFile compares a file with what it should hold.
func sameFile(path string, want []byte, mode os.FileMode) error {
	got, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("wrong content: %d bytes that begin with %.60q, want %d bytes that begin with %.60q", len(got), got, len(want), want)
	}
	if info.Mode() != mode {
		return fmt.Errorf("its mode is %v, want %v", info.Mode(), mode)
	}
	return nil
}
