// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"errors"
	"fmt"
	"io"

	"nixbuilder.io/nix-builder-operator/internal/nix/nar"
	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

// AddMultipleToStore (44) is an upload. Its paths are read one by one with Next.
// Answer: ReplyDone after the last one, or Fail at any point.
type AddMultipleToStore struct {
	// Repair asks to overwrite what is there; Server.Next refuses that.
	Repair bool
	// DontCheckSigs asks to accept paths without signatures.
	DontCheckSigs bool

	frames  *wire.FramedReader
	in      *decoder
	counted bool
	left    int
	archive *uploadedArchive
	// ended is set once the last frame has been read.
	ended bool
	err   error
}

// Operation implements Request.
func (*AddMultipleToStore) Operation() Operation { return OpAddMultipleToStore }

func (d *decoder) upload() *AddMultipleToStore {
	u := &AddMultipleToStore{Repair: d.Bool("repair"), DontCheckSigs: d.Bool("ignore signatures")}
	u.frames = wire.NewFramedReader(d.Reader)
	u.in = d.nested(u.frames)
	return u
}

// Next returns the next path and a reader of its archive. The reader ends with
// the archive and checks its structure and size, but not its hash. What the caller
// leaves of it is skipped. After the last path Next returns io.EOF. A
// *ProtocolError, here or from the reader, says that the data break the protocol.
func (u *AddMultipleToStore) Next() (*PathInfo, io.Reader, error) {
	if u.err == nil {
		info, err := u.next()
		if err == nil {
			return info, u.archive, nil
		}
		u.err = err
	}
	return nil, nil, u.err
}

func (u *AddMultipleToStore) next() (*PathInfo, error) {
	if !u.counted {
		u.counted = true
		u.left = u.in.Count("number of paths", u.in.limits.Paths)
	}
	if u.archive != nil {
		if _, err := io.Copy(io.Discard, u.archive); err != nil {
			return nil, err
		}
		u.archive = nil
	}
	if err := u.in.Err(); err != nil {
		return nil, u.failure(err)
	}
	if u.left == 0 {
		return nil, u.end()
	}
	u.left--
	u.in.SetBudget(u.in.limits.Message)
	info := u.in.pathInfo()
	if err := u.in.Err(); err != nil {
		return nil, u.failure(err)
	}
	size := u.in.limits.NAR
	if info.NARSize != 0 {
		size = int64(info.NARSize)
	}
	u.archive = &uploadedArchive{upload: u, info: info, nar: nar.NewReader(u.in.Reader, size)}
	return info, nil
}

// end reads the end of the framed stream and returns io.EOF.
func (u *AddMultipleToStore) end() error {
	switch err := u.in.Wait(); {
	case errors.Is(err, io.EOF):
		u.ended = true
		return io.EOF
	case err != nil:
		return u.failure(err)
	}
	return u.malformed("there is more in the upload than it announced", nil)
}

// failure tells an upload that breaks the protocol from a broken connection.
func (u *AddMultipleToStore) failure(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) && u.frames.Done() {
		return u.malformed("the upload ends too early", err)
	}
	return requestError(OpAddMultipleToStore, err)
}

func (u *AddMultipleToStore) malformed(text string, err error) error {
	return &ProtocolError{
		Operation: OpAddMultipleToStore,
		Text:      fmt.Sprintf("%s: %s", OpAddMultipleToStore, text),
		Err:       err,
	}
}

// uploadedArchive is the archive of one path.
type uploadedArchive struct {
	upload *AddMultipleToStore
	info   *PathInfo
	nar    *nar.Reader
}

// Read implements io.Reader.
func (a *uploadedArchive) Read(p []byte) (int, error) {
	n, err := a.nar.Read(p)
	return n, a.outcome(err)
}

// WriteTo implements io.WriterTo, without copying.
func (a *uploadedArchive) WriteTo(dst io.Writer) (int64, error) {
	w := &sinkWriter{dst: dst}
	n, err := a.nar.WriteTo(w)
	if w.err != nil {
		return n, w.err
	}
	if err = a.outcome(err); err == nil {
		err = ignoreEOF(a.outcome(io.EOF))
	}
	return n, err
}

// outcome says what an error of reading the archive means for the upload.
func (a *uploadedArchive) outcome(err error) error {
	switch {
	case err == nil:
		return nil
	case err != io.EOF:
		return a.upload.failure(err)
	case a.info.NARSize != 0 && uint64(a.nar.Size()) != a.info.NARSize:
		return a.upload.malformed(fmt.Sprintf("the archive of %s has %d bytes where %d are announced",
			a.info.Path, a.nar.Size(), a.info.NARSize), nil)
	}
	return io.EOF
}

// sinkWriter remembers that it was the destination that failed.
type sinkWriter struct {
	dst io.Writer
	err error
}

// Write implements io.Writer.
func (w *sinkWriter) Write(p []byte) (int, error) {
	n, err := w.dst.Write(p)
	w.err = err
	return n, err
}

// drain throws the rest of the upload away.
func (u *AddMultipleToStore) drain(limit int64) error {
	if u.ended {
		return nil
	}
	u.ended = true
	u.err = io.ErrUnexpectedEOF
	_, err := u.frames.Drain(limit)
	return err
}
