// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// diskSize is the size of a builder's disk, in bytes.
const diskSize = 192 << 20

// aliveChecks has a builder's sshd find out that it was cut off, as the documentation asks
// for: without them it keeps what it runs for a client that is gone.
const aliveChecks = "ClientAliveInterval 15\nClientAliveCountMax 3\n"

// builder is a machine that things are done to, one at a time.
type builder struct {
	*nixlab.Builder
	wire   wire
	events *events
	// using is held while something is done to the builder.
	using sync.Mutex
	mu    sync.Mutex
	// network is that of the last boot. Holding it lets the kernel end the
	// connections of processes that were killed in an orderly way, however slow
	// the line is.
	network *os.File
	// collects is set once garbage is collected there.
	collects bool
	// kills has the times at which the builder was killed.
	kills []time.Time
}

// id is what the dispatcher calls the builder.
func (b *builder) id() string { return builderObject + "/" + b.Name() }

// newBuilder boots a builder with a disk and a link of its own.
func newBuilder(ctx context.Context, w *world, number int, version nixlab.Version) (*builder, error) {
	name := fmt.Sprintf("b%d", number)
	disk := filepath.Join(w.dir, "disk-"+name)
	if err := os.Mkdir(disk, 0o755); err != nil {
		return nil, err
	}
	if err := run(ctx, "mount", "-t", "tmpfs", "-o", fmt.Sprintf("mode=755,size=%d", diskSize), "disk", disk); err != nil {
		return nil, err
	}
	host, err := w.lab.StartBuilder(ctx, nixlab.BuilderOptions{
		Name: name, Version: version, OwnNetwork: true, Store: disk, SSHDConfig: aliveChecks,
	})
	if err != nil {
		return nil, err
	}
	b := &builder{Builder: host, wire: wire{number}, events: w.events}
	return b, b.plug(ctx)
}

func (b *builder) plug(ctx context.Context) error {
	pid, err := b.PID()
	if err != nil {
		return err
	}
	network, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return err
	}
	b.mu.Lock()
	if b.network != nil {
		b.network.Close()
	}
	b.network = network
	b.mu.Unlock()
	return b.wire.plug(ctx, pid)
}

// restart boots the builder with the store that it had.
func (b *builder) restart(ctx context.Context) error {
	err := errors.Join(b.Restart(ctx), b.plug(ctx))
	b.mu.Lock()
	collects := b.collects
	b.mu.Unlock()
	if collects && err == nil {
		err = b.collect(ctx)
	}
	return err
}

// kill ends all processes of the builder at once. Connections end with them.
func (b *builder) kill(why string) time.Time {
	b.events.down(b.Name(), "killed "+why)
	at := time.Now()
	b.Kill()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kills = append(b.kills, at)
	return at
}

// lastKill is when the builder was last killed; long ago if never.
func (b *builder) lastKill() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.kills) == 0 {
		return time.Unix(0, 0)
	}
	return b.kills[len(b.kills)-1]
}

// killedBetween reports whether the builder was killed between two times.
func (b *builder) killedBetween(from, to time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.ContainsFunc(b.kills, func(at time.Time) bool { return at.After(from) && at.Before(to) })
}

// revive ends what kill began.
func (b *builder) revive(ctx context.Context) error {
	err := b.restart(ctx)
	b.events.up(b.Name(), "restarted")
	return err
}

// cut lets everything that is sent to the builder vanish.
func (b *builder) cut(ctx context.Context) error {
	pid, err := b.PID()
	if err != nil {
		return err
	}
	b.events.down(b.Name(), "cut off")
	return b.wire.swallow(ctx, pid)
}

// heal ends what cut began.
func (b *builder) heal(ctx context.Context) error {
	pid, err := b.PID()
	if err != nil {
		return err
	}
	err = b.wire.deliver(ctx, pid)
	b.events.up(b.Name(), "connected again")
	return err
}

// limit sets the rates to and from the builder in bytes per second, also after it
// was killed; 0 is none.
func (b *builder) limit(ctx context.Context, to, from int) error {
	b.mu.Lock()
	network := b.network
	b.mu.Unlock()
	return errors.Join(b.wire.slowUp(ctx, network, from), b.wire.slowDown(ctx, to))
}

// fill takes all space that is left on the builder's disk.
func (b *builder) fill(ctx context.Context) error {
	// More than there is room for; what fits stays.
	_, err := b.Exec(ctx, "sh", "-c", fmt.Sprintf("head -c %d /dev/zero >/nix/filler 2>/dev/null; test -s /nix/filler", diskSize))
	return err
}

func (b *builder) empty(ctx context.Context) error {
	_, err := b.Exec(ctx, "rm", "-f", "/nix/filler")
	return err
}

// hangUp ends every session of the dispatcher's on the builder.
func (b *builder) hangUp(ctx context.Context) error {
	// Nothing to kill is status 1.
	_, err := b.Exec(ctx, "sh", "-c", "pkill -KILL -u "+nixlab.TrustedUser+" || [ $? = 1 ]")
	return err
}

// collector is the garbage collector, again and again. It runs on the builder itself,
// so that it is stopped, and goes on, with everything else there.
const collector = `(while [ ! -e /tmp/no-collections ]; do
	nix-store --gc 2>&1 && echo collected
	sleep 0.7
done) >>/var/log/lab/collections </dev/null 2>&1 &`

// collect starts the collector, now and after every boot.
func (b *builder) collect(ctx context.Context) error {
	b.mu.Lock()
	b.collects = true
	b.mu.Unlock()
	_, err := b.Exec(ctx, "sh", "-c", collector)
	return err
}

// endCollections stops the collector and returns how often it has run to its end since
// the beginning, and how many paths it took.
func (b *builder) endCollections(ctx context.Context) (runs, paths int, err error) {
	text, err := b.Exec(ctx, "sh", "-c", "touch /tmp/no-collections; cat /var/log/lab/collections")
	return strings.Count(text, "collected\n"), strings.Count(text, "deleting '/nix/store/"), err
}
