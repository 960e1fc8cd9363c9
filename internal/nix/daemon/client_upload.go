// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync/atomic"

	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

// PathSource yields what AddMultipleToStore sends. References must come before
// the paths that refer to them.
type PathSource struct {
	// Count is the number of paths.
	Count int
	// Next returns the next path and a reader of its archive, read to its end
	// before the next call. It is called Count times, on another goroutine than
	// the caller's, which has ended when AddMultipleToStore returns; it should
	// fail when the context of the call ends.
	Next func() (PathInfo, io.Reader, error)
}

// errRefused ends an upload that the daemon has refused already.
var errRefused = errors.New("the daemon has refused the upload")

// AddMultipleToStore (44) adds the paths of src to the daemon's store without
// asking for signatures, for which it must trust us. Messages arrive while the
// upload runs. The daemon may refuse in the middle; then the rest is not sent and
// the *RemoteError is returned.
func (c *Client) AddMultipleToStore(ctx context.Context, src PathSource, sink MessageSink) error {
	return c.step(ctx, OpAddMultipleToStore.String(), func() error {
		c.out.Uint64(uint64(OpAddMultipleToStore))
		c.out.Bool(false) // no repair
		c.out.Bool(true)  // do not check signatures
		u := &upload{client: c, frames: wire.NewFramedWriter(c.out)}
		sent := make(chan error, 1)
		go func() { sent <- u.run(src) }()

		said := c.in.messages(sink)
		saidFirst := said != nil && !u.failed.Load()
		if said != nil {
			u.refused.Store(true)
			if !isRemote(said) {
				_ = c.breakOff(said)
			}
		}
		return u.outcome(said, saidFirst, <-sent)
	})
}

// upload is the sending half of AddMultipleToStore.
type upload struct {
	client *Client
	frames *wire.FramedWriter
	// refused is set once nothing more needs to be sent.
	refused atomic.Bool
	// failed is set once sending failed, before anything is done about it.
	failed atomic.Bool
	// sourceErr is the failure of the PathSource, if that ended the upload.
	sourceErr error
	// hangup closes the connection some time after a failed write.
	hangup func() bool
}

// run sends the upload to its end, or to the refusal.
func (u *upload) run(src PathSource) error {
	err := u.send(src)
	if u.sourceErr != nil {
		// The daemon waits for bytes that will not come.
		u.failed.Store(true)
		_ = u.client.conn.Close()
		return u.sourceErr
	}
	if err == nil || errors.Is(err, errRefused) {
		if err = u.frames.Close(); err == nil {
			err = u.client.out.Flush()
		}
	}
	if err != nil {
		// The daemon may have said why before it closed; do not wait long for it.
		u.failed.Store(true)
		u.hangup = u.client.closeAfter(lastWords)
		err = fmt.Errorf("send the upload: %w", err)
	}
	return err
}

func (u *upload) send(src PathSource) error {
	w := wire.NewWriter(u.frames)
	w.Uint64(uint64(src.Count))
	for range src.Count {
		if u.refused.Load() {
			return errRefused
		}
		info, archive, err := src.Next()
		if err != nil {
			u.sourceErr = fmt.Errorf("get the next path to send: %w", err)
			return u.sourceErr
		}
		info.encode(w)
		if err := w.Flush(); err != nil {
			return err
		}
		if err := u.archive(&info, archive); err != nil {
			return err
		}
	}
	return w.Flush()
}

// archive sends one archive, which must have the size that its info says.
func (u *upload) archive(info *PathInfo, archive io.Reader) error {
	src := &archiveReader{upload: u, src: archive, left: int64(info.NARSize)}
	if info.NARSize == 0 {
		src.left = math.MaxInt64
	}
	if _, err := u.frames.ReadFrom(src); err != nil {
		if src.err != nil && !errors.Is(src.err, errRefused) {
			u.sourceErr = fmt.Errorf("read the archive of %s: %w", info.Path, src.err)
		}
		return err
	}
	if info.NARSize != 0 && src.left > 0 {
		u.sourceErr = fmt.Errorf("the archive of %s ends %d bytes short of its size %d", info.Path, src.left, info.NARSize)
		return u.sourceErr
	}
	return nil
}

// archiveReader reads an archive up to a size and notices that the upload was
// refused.
type archiveReader struct {
	upload *upload
	src    io.Reader
	left   int64
	err    error
}

// Read implements io.Reader.
func (a *archiveReader) Read(p []byte) (int, error) {
	if a.upload.refused.Load() {
		a.err = errRefused
		return 0, a.err
	}
	n, err := a.src.Read(p)
	if a.left -= int64(n); a.left < 0 {
		n, err = 0, errors.New("it is larger than its size says")
	}
	if err != nil && err != io.EOF {
		a.err = err
	}
	return n, err
}

// outcome makes one error of what the daemon said and how sending ended. Whichever
// failed first made the other fail.
func (u *upload) outcome(said error, saidFirst bool, sent error) error {
	if u.hangup != nil {
		u.hangup()
	}
	switch {
	case sent == nil:
		return said
	case isRemote(said):
		_ = u.client.breakOff(sent)
		return said
	case saidFirst, u.sourceErr == nil && errors.Is(said, io.ErrUnexpectedEOF):
		return said
	}
	return u.client.breakOff(sent)
}
