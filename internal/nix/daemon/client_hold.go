// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

// HoldPaths keeps paths from the daemon's garbage collector for as long as the
// connection lives, and then asks which of them are valid: n times AddTempRoot
// (11) and QueryValidPaths (31) without substitution, in one round trip. Since
// they are asked about after they are held, what is valid stays so; paths that are
// not valid are held as well, from the moment on when something adds them.
//
// Where the daemon answers but refuses to hold paths, valid is what it said to 31
// and the error is its *RemoteError: then nothing may be relied on for longer than
// the moment.
func (c *Client) HoldPaths(ctx context.Context, paths []string, sink MessageSink) (valid []string, err error) {
	if len(paths) == 0 {
		return nil, nil
	}
	if err := c.withinLimits(OpAddTempRoot, paths); err != nil {
		return nil, err
	}
	err = c.flight(ctx, OpAddTempRoot, func(w *wire.Writer) {
		for _, path := range paths {
			w.Uint64(uint64(OpAddTempRoot))
			w.String(path)
		}
		w.Uint64(uint64(OpQueryValidPaths))
		w.Strings(paths)
		w.Bool(false)
	}, func(f *replies) {
		for range paths {
			f.next(sink, func(d *decoder) { d.Uint64("reply") })
		}
		f.next(sink, func(d *decoder) { valid = d.paths("paths") })
	})
	if err != nil && c.broken != nil {
		valid = nil
	}
	return valid, err
}

// QueryPathInfos asks what the daemon's store knows about paths (26), all in one
// round trip. The answers have the order of paths, nil where one is not valid: note
// that a daemon may remember that for an hour.
func (c *Client) QueryPathInfos(ctx context.Context, paths []string, sink MessageSink) ([]*PathInfo, error) {
	if len(paths) == 0 {
		return nil, nil
	}
	if err := c.withinLimits(OpQueryPathInfo, paths); err != nil {
		return nil, err
	}
	infos := make([]*PathInfo, 0, len(paths))
	err := c.flight(ctx, OpQueryPathInfo, func(w *wire.Writer) {
		for _, path := range paths {
			w.Uint64(uint64(OpQueryPathInfo))
			w.String(path)
		}
	}, func(f *replies) {
		for _, path := range paths {
			f.next(sink, func(d *decoder) {
				var info *PathInfo
				if d.Bool("valid") {
					info = d.unkeyedPathInfo(path)
				}
				infos = append(infos, info)
			})
		}
	})
	if err != nil {
		return nil, err
	}
	return infos, nil
}

func (c *Client) withinLimits(op Operation, paths []string) error {
	if limit := c.in.limits.Paths; len(paths) > limit {
		return fmt.Errorf("%s: %d paths at once, only %d are allowed", op, len(paths), limit)
	}
	return nil
}

// flight sends a number of requests without waiting for the answers in between.
// Sending runs beside reading: a daemon that blocks because its answers are not
// read takes no requests either. It has ended when flight returns.
//
// If the daemon answers one request with an error, the others' answers are read
// all the same; the first error is returned, and the connection stays usable unless
// the daemon has closed it.
func (c *Client) flight(ctx context.Context, op Operation, send func(*wire.Writer), receive func(*replies)) error {
	return c.step(ctx, op.String(), func() error {
		var failed atomic.Bool
		stop := func() bool { return false }
		sent := make(chan error, 1)
		go func() {
			send(c.out)
			err := c.out.Flush()
			if err != nil {
				// The daemon may have said why before it closed, which is still to be read.
				failed.Store(true)
				stop = c.closeAfter(lastWords)
			}
			sent <- err
		}()
		f := &replies{in: c.in, budget: c.in.limits.Message}
		receive(f)
		sendFirst := failed.Load()
		if f.broken != nil {
			_ = c.breakOff(f.broken) // which also ends what is still being sent
		}
		err := <-sent
		stop()
		switch {
		case f.remote != nil:
			return f.remote
		case f.broken != nil && sendFirst && !errors.Is(f.broken, io.ErrUnexpectedEOF):
			return fmt.Errorf("send the requests: %w", err)
		case f.broken != nil:
			return f.broken
		case err != nil:
			return c.breakOff(fmt.Errorf("send the requests: %w", err))
		}
		return nil
	})
}

// replies reads the answers to the requests of a flight in turn.
type replies struct {
	in *decoder
	// budget is how many bytes all replies together may still have.
	budget int64
	// remote is the first error that the daemon answered with, broken what made
	// the connection unreadable; nothing is read after that.
	remote, broken error
}

// next reads messages and one reply.
func (f *replies) next(sink MessageSink, reply func(*decoder)) {
	if f.broken != nil {
		return
	}
	switch err := f.in.messages(sink); {
	case isRemote(err):
		if f.remote == nil {
			f.remote = err
		}
		return
	case err != nil:
		f.broken = err
		return
	}
	begin := f.in.Offset()
	f.in.SetBudget(f.budget)
	reply(f.in)
	f.budget -= f.in.Offset() - begin
	f.broken = f.in.Err()
}
