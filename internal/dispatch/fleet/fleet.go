// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package fleet is the builder side of a dispatcher: it keeps SSH connections
// to the builders, opens daemon sessions on them, and tells the scheduler which
// builders can be used.
//
// A builder is assumed healthy until something fails, and connected to when it
// is first needed. When a connection is lost, or a session cannot be opened, the
// builder is down at once; a new connection is then tried after pauses that grow
// with every failure, and its success makes the builder healthy again.
// "Success" is a whole daemon handshake that leaves us trusted, not a TCP
// connection. What the builders file says of a builder's health is obeyed where
// it is worse than what was seen from here.
//
//	Fleet ── host (one per endpoint) ── link (SSH connection) ── Session (nix-daemon --stdio)
package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"

	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// Conn is a connection to a builder, on which commands are started.
type Conn interface {
	// Start runs a command on the builder.
	Start(ctx context.Context, command string) (Stream, error)
	// Done is closed when the connection has ended; Err then says why.
	Done() <-chan struct{}
	Err() error
	Close() error
}

// Stream is the standard input and output of a command.
type Stream interface {
	io.ReadWriteCloser
	// Stderr returns the end of what the command has written to its standard
	// error. It is asked when something went wrong, and may wait a moment for
	// the command's last words.
	Stderr() string
}

// Dialer connects to an endpoint.
type Dialer func(ctx context.Context, endpoint inventory.Endpoint) (Conn, error)

// Options configure a [Fleet].
type Options struct {
	// Dial connects to a builder, login included. Its context has a deadline.
	Dial Dialer
	// OnChange is told all builders whenever one of them changes. Calls are
	// one at a time and in order; it must not call back.
	OnChange func([]scheduler.Builder)
	// OpenTimeout bounds connecting to a builder and opening a session on it,
	// separately; 15 s if zero.
	OpenTimeout time.Duration
	// Jitter delays the first connection to each builder by up to that much, so that
	// dispatchers that start at once do not arrive at once. None if zero.
	Jitter time.Duration
	// Transfers bounds the transfers to and from a builder at the same time; 8 if
	// zero. Each has a connection of its own: on a long line that loses packets,
	// several TCP streams are faster than one by their number.
	Transfers int
	// Logger is told of connections made and lost.
	Logger *slog.Logger
}

// Fleet is the set of builders. It is safe for concurrent use.
type Fleet struct {
	opts   Options
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	// spawning guards ended, after which no goroutine is started.
	spawning sync.Mutex
	ended    bool

	// publishing orders the calls of OnChange.
	publishing sync.Mutex

	mu     sync.Mutex
	hosts  map[string]*host
	closed bool
}

// New returns a fleet without builders. Close ends it.
func New(opts Options) *Fleet {
	opts.OpenTimeout = cmp.Or(opts.OpenTimeout, 15*time.Second)
	opts.Transfers = cmp.Or(opts.Transfers, 8)
	f := &Fleet{opts: opts, hosts: map[string]*host{}}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f
}

// Update replaces the builders. Sessions on builders that are gone, or that are
// now reached in another way, go on; no new ones are opened there.
func (f *Fleet) Update(doc inventory.Document) {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return
	}
	old := f.hosts
	f.hosts = make(map[string]*host, len(doc.Builders))
	for _, endpoint := range doc.Builders {
		id := endpoint.ID()
		if h := old[id]; h != nil && h.sameAccess(endpoint) {
			h.update(endpoint)
			f.hosts[id] = h
			delete(old, id)
			continue
		}
		f.hosts[id] = newHost(f, endpoint)
	}
	f.mu.Unlock()
	for _, h := range old {
		h.retire()
	}
	f.publish()
}

// spawn runs f in a goroutine that Close waits for. It reports false, and does
// nothing, once Close was called.
func (f *Fleet) spawn(work func()) bool {
	f.spawning.Lock()
	defer f.spawning.Unlock()
	if f.ended {
		return false
	}
	f.wg.Go(work)
	return true
}

// Open opens a session on the builder, for a build. The error is a *LostError, or the cause
// of ctx's end.
func (f *Fleet) Open(ctx context.Context, id string) (*Session, error) {
	h := f.host(id)
	if h == nil {
		return nil, &LostError{Builder: id, Err: errGone}
	}
	return h.open(ctx)
}

// OpenBulk opens a session for a transfer, on a connection of its own as far as the
// builder admits one. It waits while as many transfers run as a builder gets; Close
// lets the next one in.
func (f *Fleet) OpenBulk(ctx context.Context, id string) (*Session, error) {
	h := f.host(id)
	if h == nil {
		return nil, &LostError{Builder: id, Err: errGone}
	}
	return h.openBulk(ctx)
}

// Builders returns the builders as the scheduler sees them, in order of ID.
func (f *Fleet) Builders() []scheduler.Builder {
	f.mu.Lock()
	hosts := make([]*host, 0, len(f.hosts))
	for _, h := range f.hosts {
		hosts = append(hosts, h)
	}
	f.mu.Unlock()
	out := make([]scheduler.Builder, len(hosts))
	for i, h := range hosts {
		out[i] = h.builder()
	}
	slices.SortFunc(out, func(a, b scheduler.Builder) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// publish tells OnChange the present builders.
func (f *Fleet) publish() {
	f.publishing.Lock()
	defer f.publishing.Unlock()
	f.opts.OnChange(f.Builders())
}

// Close closes every connection and waits for the fleet's goroutines.
func (f *Fleet) Close() {
	f.mu.Lock()
	f.closed = true
	hosts := f.hosts
	f.hosts = nil
	f.mu.Unlock()
	for _, h := range hosts {
		h.retire()
	}
	f.cancel()
	f.spawning.Lock()
	f.ended = true
	f.spawning.Unlock()
	f.wg.Wait()
}

// words turns a reason such as "HostKeyChanged" into "host key changed", and
// "NotAnSSHServer" into "not an SSH server".
func words(reason string) string {
	var list []string
	rest := []rune(reason)
	for len(rest) > 0 {
		capitals := 0
		for capitals < len(rest) && unicode.IsUpper(rest[capitals]) {
			capitals++
		}
		n := max(capitals-1, 1)
		if capitals == len(rest) {
			n = capitals
		}
		abbreviation := n > 1
		for !abbreviation && n < len(rest) && !unicode.IsUpper(rest[n]) {
			n++
		}
		word := string(rest[:n])
		if !abbreviation {
			word = strings.ToLower(word)
		}
		list, rest = append(list, word), rest[n:]
	}
	return cmp.Or(strings.Join(list, " "), "unhealthy")
}

// LostError is a failure of a builder, or of the way to it, as opposed to one
// of a build: another builder may do.
type LostError struct {
	// Builder is the ID of the builder.
	Builder string
	// Err is what happened.
	Err error
	// Stderr is the end of what nix-daemon, or the shell before it, wrote to
	// its standard error.
	Stderr string
}

func (e *LostError) Error() string {
	text := fmt.Sprintf("builder %s: %v", e.Builder, e.Err)
	if e.Stderr != "" {
		text += fmt.Sprintf(" (it wrote: %s)", e.Stderr)
	}
	return text
}

func (e *LostError) Unwrap() error { return e.Err }

// Silent reports whether the loss was silence: nobody has said that the builder's
// end is closed, so what ran there may still run.
func (e *LostError) Silent() bool {
	kind := sshconn.KindOf(e.Err)
	if jump := atJumpHost(e.Err); jump != nil {
		kind = jump.Kind
	}
	switch kind {
	case sshconn.KindKeepalive, sshconn.KindTimeout, sshconn.KindSilent, sshconn.KindStalled:
		return true
	}
	for _, silence := range []error{errSilent, context.DeadlineExceeded, syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENETUNREACH} {
		if errors.Is(e.Err, silence) {
			return true
		}
	}
	return false
}

// Brief says what happened in a few words, for people who wait for a build.
func (e *LostError) Brief() string {
	kind := sshconn.KindOf(e.Err)
	if jump := atJumpHost(e.Err); jump != nil {
		return "its jump host: " + string(jump.Kind)
	}
	switch {
	case kind != "":
		return string(kind)
	case errors.Is(e.Err, io.EOF), errors.Is(e.Err, io.ErrUnexpectedEOF), errors.Is(e.Err, io.ErrClosedPipe):
		return "its nix-daemon ended"
	}
	return e.Err.Error()
}
