// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"context"
	"io"
	"sync"
)

// aheadSize is how many bytes a watch for the peer's hang-up reads ahead at most.
// Past that it can no longer see the end of the stream, and rests.
const aheadSize = 4096

// aheadReader is a stream that can be read ahead in the background. The only way
// to learn that a peer has closed is to read, and a blocked read cannot be taken
// back, so one that is still under way when the watch ends is left to the next
// ordinary Read.
type aheadReader struct {
	src io.Reader

	mu sync.Mutex
	// reading is closed when the background goroutine has ended; nil without one.
	reading chan struct{}
	// gone is called when the stream ends while it is watched.
	gone func(error)
	// ahead holds what was read ahead and not yet taken, err how the stream ended.
	ahead []byte
	err   error
}

// Read implements io.Reader. It must not be called while the stream is watched.
func (a *aheadReader) Read(p []byte) (int, error) {
	a.mu.Lock()
	reading := a.reading
	there := len(a.ahead) > 0
	a.mu.Unlock()
	// What is there already may be a whole request: the client then sends
	// nothing more, and the read under way does not end before the next one.
	if reading != nil && !there {
		<-reading
	}
	a.mu.Lock()
	n := copy(p, a.ahead)
	a.ahead = a.ahead[n:]
	err := a.err
	a.mu.Unlock()
	switch {
	case n > 0:
		return n, nil
	case err != nil:
		return 0, err
	}
	return a.src.Read(p)
}

// watch calls gone once if the stream ends before the returned function is
// called.
func (a *aheadReader) watch(gone func(error)) (stop func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		gone(a.err)
		return func() {}
	}
	a.gone = gone
	if a.reading == nil {
		a.reading = make(chan struct{})
		go a.readAhead(a.reading)
	}
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.gone = nil
	}
}

// readAhead reads while the stream is watched. It ends with the read that was
// under way when the watch ended, at the latest when the stream is closed.
func (a *aheadReader) readAhead(done chan struct{}) {
	defer close(done)
	buf := make([]byte, aheadSize)
	for more := true; more; {
		n, err := a.src.Read(buf)
		a.mu.Lock()
		a.ahead = append(a.ahead, buf[:n]...)
		a.err = err
		if err != nil && a.gone != nil {
			a.gone(err)
		}
		more = err == nil && a.gone != nil && len(a.ahead) < aheadSize
		if !more {
			a.reading, a.gone = nil, nil
		}
		a.mu.Unlock()
	}
}

// join waits for the background goroutine, which needs the stream to be closed.
func (a *aheadReader) join() {
	a.mu.Lock()
	reading := a.reading
	a.mu.Unlock()
	if reading != nil {
		<-reading
	}
}

// WatchHangup returns a context that ends, with the cause ErrClientGone, when the
// client closes the connection. It is for the time between Next and the reply,
// when nobody reads; the upload of AddMultipleToStore must have been read before.
//
// stop ends the watch and the context, and must be called before the next Next.
// Bytes that a client sends ahead are not lost. The read that looks for the end
// of the stream stays under way and is taken over by the next Next; Close joins
// its goroutine.
func (s *Server) WatchHangup(ctx context.Context) (watched context.Context, stop func()) {
	watched, cancel := context.WithCancelCause(ctx)
	// What the client has sent behind the request is buffered before that.
	unwatch := s.stream.watch(func(error) { cancel(ErrClientGone) })
	return watched, func() {
		unwatch()
		cancel(nil)
	}
}
