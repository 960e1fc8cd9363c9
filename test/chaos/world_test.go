// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// patience is for what a program does soon, however busy the machine is.
const patience = 60 * time.Second

// world is all that a test needs: builders, clients and a dispatcher between them.
type world struct {
	dir        string // in memory
	events     *events
	lab        *nixlab.Lab
	builders   []*builder
	clients    []*client
	roster     *roster
	dispatcher *dispatcher
	// running are the client commands that have not ended.
	running sync.WaitGroup
}

// worldOptions say how a world differs from others.
type worldOptions struct {
	// builders are their versions of Nix, clients likewise.
	builders, clients []nixlab.Version
	slots             int
	// flags are further ones of the dispatcher.
	flags []string
}

// newWorld starts everything. It lasts until the end of the test, and what it has
// to say is shown when that fails.
func newWorld(t *testing.T, opts worldOptions) *world {
	t.Helper()
	ctx := t.Context()
	w := &world{events: newEvents(nil)}
	if testing.Verbose() {
		w.events.live = t.Output()
	}
	t.Cleanup(func() { w.show(t) })
	var err error
	if w.dir, err = os.MkdirTemp(disks, "world-"); err != nil {
		t.Fatal(err)
	}
	if w.lab, err = nixlab.New(nixlab.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.lab.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, dir := range []string{"volume", "spool"} {
		if err := os.Mkdir(filepath.Join(w.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.bootBuilders(ctx, opts); err != nil {
		t.Fatal(err)
	}
	// Before the clients: their daemons read its nix.conf when they start.
	w.dispatcher, err = startDispatcher(ctx, w, opts.flags...)
	t.Cleanup(func() { _ = w.dispatcher.stop() }) // a test that cares has stopped it
	if err != nil {
		t.Fatal(err)
	}
	if err := w.bootClients(ctx, opts.clients); err != nil {
		t.Fatal(err)
	}
	w.events.note("%d builders, %d clients and the dispatcher are up", len(w.builders), len(w.clients))
	return w
}

// bootBuilders starts builders side by side, and lists them.
func (w *world) bootBuilders(ctx context.Context, opts worldOptions) (err error) {
	if _, err := w.lab.Prepare(ctx, nixlab.Versions()...); err != nil {
		return err
	}
	w.builders = make([]*builder, len(opts.builders))
	if err := sideBySide(len(opts.builders), func(i int) (err error) {
		w.builders[i], err = newBuilder(ctx, w, i+1, opts.builders[i])
		return err
	}); err != nil {
		return err
	}
	if w.roster, err = newRoster(w.dir, w.lab.ClientKeyFile()); err != nil {
		return err
	}
	for _, b := range w.builders {
		w.roster.add(b, opts.slots)
	}
	return w.roster.restore()
}

// bootClients starts clients side by side.
func (w *world) bootClients(ctx context.Context, versions []nixlab.Version) error {
	w.clients = make([]*client, len(versions))
	return sideBySide(len(versions), func(i int) error {
		host, err := w.lab.StartClient(ctx, nixlab.ClientOptions{
			Name: fmt.Sprintf("c%d", i+1), Version: versions[i], Volume: w.dispatcher.volume,
			// Every other one builds as an ordinary user of its own daemon.
			Daemon: i%2 == 1,
		})
		w.clients[i] = &client{Client: host, w: w}
		return err
	})
}

// sideBySide calls f with all numbers below n at once.
func sideBySide(n int, f func(int) error) error {
	failures := make([]error, n)
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() { failures[i] = f(i) })
	}
	group.Wait()
	return errors.Join(failures...)
}

// names are those of the builders.
func (w *world) names() []string {
	names := make([]string, len(w.builders))
	for i, b := range w.builders {
		names[i] = b.Name()
	}
	return names
}

// byID is the builder with the dispatcher's ID; nil if there is none.
func (w *world) byID(id string) *builder {
	for _, b := range w.builders {
		if b.id() == id {
			return b
		}
	}
	return nil
}

// show prints what helps to understand a failure, and writes complete logs where
// the run was asked to.
func (w *world) show(t *testing.T) {
	texts := map[string]string{"events": w.events.String()}
	if w.dispatcher != nil {
		texts["dispatcher"] = w.dispatcher.log.String()
	}
	for _, b := range w.builders {
		if b != nil {
			texts["builder-"+b.Name()] = b.Logs()
		}
	}
	for name, text := range texts {
		if *logsFlag != "" {
			file := filepath.Join(*logsFlag, strings.ReplaceAll(t.Name(), "/", "-")+"-"+name+".log")
			if err := errors.Join(os.MkdirAll(*logsFlag, 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
				t.Error(err)
			}
		} else if t.Failed() {
			t.Logf("--- %s ---\n%s", name, lastBytes(text, 60_000))
		}
	}
}

// lastBytes is the end of a text that is too long to be shown as a whole.
func lastBytes(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	return fmt.Sprintf("(%d bytes left out; -logs has them)\n%s", len(text)-limit, text[len(text)-limit:])
}

// eventually waits until check succeeds. Its last error tells what was missing.
func eventually(ctx context.Context, limit time.Duration, what string, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("waited for %s: %w", what, err)
		}
	}
}
