// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	// idleSessions is the most daemon sessions that an idle dispatcher keeps on a
	// builder: some that wait for builds, and some that hold paths.
	idleSessions = 8
	// settleTime is how long a dispatcher may take to become idle.
	settleTime = 20 * time.Second
	// graceTime is how long slots of builds that were lost by silence stay
	// counted, and connections for transfers warm: see --orphan-grace.
	graceTime = 130 * time.Second
	// Goroutines that a connection to a builder takes at most, and a session. Some
	// more may differ between two idle states.
	goroutinesPerConnection, goroutinesPerSession, slack = 10, 6, 12
)

// settle waits until nobody builds and nothing is left of builds but what an idle
// dispatcher keeps, and returns what its process holds then. No more of that than
// before may be left; a zero before is no bound.
func (w *world) settle(t *testing.T, before usage) usage {
	t.Helper()
	ctx := t.Context()
	// Only long runs have faults that the dispatcher sees as silent losses.
	limit := settleTime
	if *durationFlag >= time.Minute {
		limit += graceTime
	}
	for _, check := range []struct {
		what  string
		check func(context.Context) error
	}{
		{"slots to be free", w.noBuilds},
		{"builders to be idle", w.noBuildProcesses},
		{"clients to be gone", w.noHelpers},
		{"the spool to hold complete paths only", w.spoolIsWhole},
		{"the clients' directory to hold no temporary files", w.volumeIsClean},
	} {
		if err := eventually(ctx, limit, check.what, func() error { return check.check(ctx) }); err != nil {
			t.Errorf("left over: %v", err)
		}
	}
	var now usage
	err := eventually(ctx, limit, "the dispatcher to let go of things", func() (err error) {
		if now, err = w.dispatcher.usage(ctx); err != nil || before == (usage{}) {
			return err
		}
		return now.within(before)
	})
	if err != nil {
		t.Errorf("left over: %v (its log ends with what its goroutines do)", err)
		_ = w.dispatcher.command.Process.Signal(syscall.SIGQUIT)
		<-w.dispatcher.done
	}
	w.events.note("harness: idle, the dispatcher's process holds %+v", now)
	return now
}

// within fails if more is held than before, but for connections and sessions that are
// kept, and are counted.
func (u usage) within(before usage) error {
	goroutines := before.goroutines + slack + u.connections*goroutinesPerConnection + u.sessions*goroutinesPerSession
	if u.goroutines > goroutines || u.files > before.files || u.sockets > before.sockets+u.connections {
		return fmt.Errorf("it holds %+v, and held %+v at the start", u, before)
	}
	return nil
}

// noBuilds fails while a slot is in use, or a build or a client is there.
func (w *world) noBuilds(ctx context.Context) error {
	status, err := w.dispatcher.state(ctx)
	if err != nil {
		return err
	}
	if builds := len(status.Running) + len(status.Waiting); builds+status.ClientConnections > 0 {
		return fmt.Errorf("%d builds and %d connections", builds, status.ClientConnections)
	}
	for _, b := range status.Builders {
		if b.Used > 0 {
			return fmt.Errorf("%s: %d slots in use, %d of them by builds that were lost", b.ID, b.Used, b.Orphaned)
		}
	}
	if status.Spool.InUse > 0 {
		return fmt.Errorf("%d paths of the spool are in use", status.Spool.InUse)
	}
	return nil
}

// noBuildProcesses fails while a builder runs a build, has its directory, or more
// sessions than idle ones.
func (w *world) noBuildProcesses(ctx context.Context) error {
	var all []error
	for _, b := range w.builders {
		running, err := b.BuildsRunning()
		all = append(all, err)
		if running > 0 {
			all = append(all, fmt.Errorf("%s runs %d builds", b.Name(), running))
		}
		// Nix itself leaves those of the time before a crash.
		dirs, err := b.Exec(ctx, "sh", "-c", fmt.Sprintf("find /tmp/nix-* /nix/var/nix/builds/* -maxdepth 0 -newermt @%d 2>/dev/null || true",
			b.lastKill().Unix()+1))
		all = append(all, err)
		if dirs != "" {
			all = append(all, fmt.Errorf("%s has directories of builds: %s", b.Name(), strings.Fields(dirs)))
		}
		all = append(all, w.knownSessions(ctx, b))
	}
	return errors.Join(all...)
}

// knownSessions fails while a builder runs other sessions than those that the
// dispatcher says it keeps, or more of them than an idle one does.
func (w *world) knownSessions(ctx context.Context, b *builder) error {
	busy, err := w.dispatcher.metric(ctx, fmt.Sprintf(`nix_dispatcher_builder_sessions{builder=%q,state="busy"}`, b.id()))
	if err != nil {
		return err
	}
	kept, err := w.dispatcher.metric(ctx, fmt.Sprintf(`nix_dispatcher_builder_sessions{builder=%q,state="[^"]*"}`, b.id()))
	if err != nil {
		return err
	}
	text, err := b.Exec(ctx, "sh", "-c", "pgrep -c -f '^[n]ix-daemon --stdio' || true")
	if err != nil {
		return err
	}
	running, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil || busy > 0 || running != kept || running > idleSessions {
		return errors.Join(err, fmt.Errorf("%s runs %d sessions; the dispatcher says %d, %d of them busy", b.Name(), running, kept, busy))
	}
	return nil
}

// noHelpers fails while a client has a build hook or a helper.
func (w *world) noHelpers(ctx context.Context) error {
	var all []error
	for _, c := range w.clients {
		text, err := c.Exec(ctx, "sh", "-c", "pgrep -a -f '[n]ix-dispatch-connect|[b]uild-remote' || true")
		all = append(all, err)
		if text != "" {
			all = append(all, fmt.Errorf("%s still runs %s", c.Name(), text))
		}
	}
	return errors.Join(all...)
}

// spoolIsWhole fails while the spool's files are not those of the paths that it
// has.
func (w *world) spoolIsWhole(ctx context.Context) error {
	files, err := filepath.Glob(filepath.Join(w.dispatcher.spool, "nars", "*"))
	if err != nil {
		return err
	}
	size := int64(0)
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil {
			return err
		}
		size += info.Size()
	}
	status, err := w.dispatcher.state(ctx)
	if err == nil && (status.Spool.Paths != len(files) || status.Spool.Bytes != size) {
		err = fmt.Errorf("%d files have %d bytes, and its status is %+v", len(files), size, status.Spool)
	}
	return err
}

// volumeIsClean fails while the directory shared with clients has more than helper,
// socket and configuration.
func (w *world) volumeIsClean(context.Context) error {
	entries, err := os.ReadDir(w.dispatcher.volume)
	if err != nil {
		return err
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
		if strings.Contains(entry.Name(), "tmp") || strings.HasPrefix(entry.Name(), ".") {
			return fmt.Errorf("%s is there", entry.Name())
		}
	}
	if len(names) > 4 {
		return fmt.Errorf("there are %v", names)
	}
	return nil
}

// end stops the dispatcher and fails if anything of it remains.
func (w *world) end(t *testing.T) {
	t.Helper()
	if err := w.dispatcher.stop(); err != nil {
		t.Errorf("the end of the dispatcher: %v", err)
	}
	if files, err := filepath.Glob(filepath.Join(w.dispatcher.spool, "nars", "*")); err != nil || len(files) > 0 {
		t.Errorf("the spool still has %d files (%v)", len(files), err)
	}
	for _, b := range w.builders {
		err := eventually(t.Context(), patience, "sessions to end", func() error {
			text, err := b.Exec(t.Context(), "sh", "-c", "ps -u nixt -o args= || true")
			if err != nil {
				return err
			}
			if text != "" {
				return fmt.Errorf("%s still runs:\n%s", b.Name(), text)
			}
			return nil
		})
		if err != nil {
			t.Errorf("left over: %v", err)
		}
	}
}
