// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"nixbuilder.io/nix-builder-operator/internal/connect"
	"nixbuilder.io/nix-builder-operator/internal/dispatch/fleet"
	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
	"nixbuilder.io/nix-builder-operator/internal/spool"
	"nixbuilder.io/nix-builder-operator/test/captured"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	system  = "x86_64-linux"
	address = "dispatcher:1"
)

// rig is a dispatcher with builders in memory. It is made for fake time.
type rig struct {
	t       *testing.T
	server  *Server
	ledger  *scheduler.Local
	fleet   *fleet.Fleet
	spool   *spool.Store
	network *sshtest.Network
	served  chan error
	events  events

	mu       sync.Mutex
	machines map[string]*machine
	log      captured.Text
}

// rigOptions change a rig. The zero value gives builders one slot each.
type rigOptions struct {
	builders []*machine
	spool    int64
	limits   Limits
	// waitLimit is the longest time that a build waits.
	waitLimit time.Duration
	// dial reaches other builders than those in memory.
	dial fleet.Dialer
	// failing takes the place of the spool.
	failing func(*spool.Store) Spool
}

// classes knows a class by the system and features in its name, and one slot
// more than it should.
type classes struct{}

func (classes) Lookup(target connect.Target) (scheduler.Class, error) {
	if target.Slot > 9 {
		return scheduler.Class{}, fmt.Errorf("class %q has no slot %d", target.Class, target.Slot)
	}
	words := strings.Split(target.Class, ".")
	if words[0] != system {
		return scheduler.Class{}, fmt.Errorf("no builders of class %q", target.Class)
	}
	return scheduler.NewClass(words[0], words[1:], nil), nil
}

func newRig(t *testing.T, opts rigOptions) *rig {
	t.Helper()
	if opts.spool == 0 {
		opts.spool = 1 << 20
	}
	r := &rig{t: t, network: sshtest.NewNetwork(), machines: map[string]*machine{}, served: make(chan error, 1)}
	logger := slog.New(slog.NewTextHandler(&r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	if r.spool, err = spool.Open(spool.Options{Dir: t.TempDir(), MaxBytes: opts.spool, Logger: logger}); err != nil {
		t.Fatal(err)
	}
	r.ledger = scheduler.NewLocal(scheduler.LocalOptions{WaitLimit: opts.waitLimit})
	if opts.dial == nil {
		opts.dial = r.dial
	}
	r.fleet = fleet.New(fleet.Options{Dial: opts.dial, OnChange: r.ledger.Update, Logger: logger})
	var store Spool = r.spool
	if opts.failing != nil {
		store = opts.failing(r.spool)
	}
	r.server = NewServer(Options{
		Scheduler: r.ledger, Builders: OnFleet(r.fleet), Classes: classes{}, Spool: store,
		Recorder: &r.events, Limits: opts.limits, Version: "dispatcher of a test", Logger: logger,
	})
	r.use(opts.builders...)
	listener := r.network.Listen(address)
	go func() { r.served <- r.server.Serve(listener) }()
	t.Cleanup(r.close)
	return r
}

// use makes the machines the dispatcher's builders.
func (r *rig) use(machines ...*machine) {
	document := inventory.Document{SchemaVersion: inventory.SchemaVersion}
	r.mu.Lock()
	for _, m := range machines {
		r.machines[m.id] = m
		document.Builders = append(document.Builders, m.endpoint)
	}
	r.mu.Unlock()
	r.fleet.Update(document)
}

func (r *rig) dial(_ context.Context, e inventory.Endpoint) (fleet.Conn, error) {
	r.mu.Lock()
	m := r.machines[e.ID()]
	r.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refuse != nil {
		return nil, m.refuse
	}
	c := &conn{machine: m, done: make(chan struct{})}
	m.conns = append(m.conns, c)
	return c, nil
}

// close ends the rig and checks that nothing is left of it.
func (r *rig) close() {
	if err := r.server.Shutdown(context.Background()); err != nil {
		r.t.Errorf("Shutdown: %v", err)
	}
	if err := <-r.served; !errors.Is(err, ErrServerClosed) {
		r.t.Errorf("Serve: %v, want ErrServerClosed", err)
	}
	r.noneLeft()
	r.fleet.Close()
	if err := r.spool.Close(); err != nil {
		r.t.Error(err)
	}
	if r.t.Failed() {
		r.t.Logf("log of the dispatcher:\n%s", r.log.String())
	}
}

// noneLeft checks that no slot is taken and no spool entry pinned.
func (r *rig) noneLeft() {
	r.t.Helper()
	for _, b := range r.ledger.Snapshot().Builders {
		if b.Running != 0 {
			r.t.Errorf("%d slots of %s are still taken", b.Running, b.ID)
		}
	}
	usage := r.spool.Usage()
	if usage.Pinned != 0 {
		r.t.Errorf("%d entries of the spool are still pinned", usage.Pinned)
	}
}

// events is a Recorder that keeps what it is told.
type events struct {
	mu   sync.Mutex
	list []string
}

func (e *events) add(format string, args ...any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, fmt.Sprintf(format, args...))
}

func (e *events) Waited(c scheduler.Class, d time.Duration) {
	e.add("%s waited %v", c, d.Round(time.Second))
}
func (e *events) Ended(c scheduler.Class, builder, result string) {
	e.add("%s ended on %q: %s", c, builder, result)
}
func (e *events) Dispatched(d time.Duration)       { e.add("dispatched after %v", d.Round(time.Second)) }
func (e *events) Joined()                          { e.add("joined") }
func (e *events) FailedOver(builder, phase string) { e.add("left %s: %s", builder, phase) }
func (e *events) Missed(lines int)                 { e.add("missed %d lines", lines) }
func (e *events) BrokeProtocol(side string)        { e.add("protocol broken by %s", side) }

func (e *events) all() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.list)
}
