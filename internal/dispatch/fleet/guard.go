// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"io"
	"sync"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
)

// failure keeps the first error of what the caller of a session has put into a
// call, so that it is not taken for one of the builder.
type failure struct {
	mu  sync.Mutex
	err error
}

func (f *failure) get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *failure) set(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
	return err
}

func (f *failure) sink(sink daemon.MessageSink) daemon.MessageSink {
	if sink == nil {
		return nil
	}
	return func(m daemon.Message) error { return f.set(sink(m)) }
}

func (f *failure) reader(r io.Reader) io.Reader {
	return readerFunc(func(p []byte) (int, error) {
		n, err := r.Read(p)
		return n, f.set(err)
	})
}

func (f *failure) writer(w io.Writer) io.Writer {
	return writerFunc(func(p []byte) (int, error) {
		n, err := w.Write(p)
		return n, f.set(err)
	})
}

// watchdog calls back when the other side of a transfer makes no progress. Time
// spent on our own side is excluded by pausing it. All but bark is called by one
// goroutine.
type watchdog struct {
	limit time.Duration
	timer *time.Timer
}

func newWatchdog(limit time.Duration, bark func()) *watchdog {
	return &watchdog{limit: limit, timer: time.AfterFunc(limit, bark)}
}

func (d *watchdog) pause()  { d.timer.Stop() }
func (d *watchdog) resume() { d.timer.Reset(d.limit) }

// allow raises the limit. It counts from the next resume.
func (d *watchdog) allow(limit time.Duration) { d.limit = max(d.limit, limit) }

// sink makes every message a sign of life.
func (d *watchdog) sink(sink daemon.MessageSink) daemon.MessageSink {
	return func(m daemon.Message) error {
		d.pause()
		defer d.resume()
		if sink == nil {
			return nil
		}
		return sink(m)
	}
}

func (d *watchdog) reader(r io.Reader) io.Reader {
	return readerFunc(func(p []byte) (int, error) {
		d.pause()
		defer d.resume()
		return r.Read(p)
	})
}

func (d *watchdog) writer(w io.Writer) io.Writer {
	return writerFunc(func(p []byte) (int, error) {
		d.pause()
		defer d.resume()
		return w.Write(p)
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
