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
	archive *nar.Reader
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

// Next returns the next path and a reader of its archive, which ends with the
// archive and checks its structure but not its hash. What the caller leaves of
// it is skipped. After the last path Next returns io.EOF. A *ProtocolError says
// that the data break the protocol.
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
			return nil, requestError(OpAddMultipleToStore, err)
		}
		u.archive = nil
	}
	if err := u.in.Err(); err != nil {
		return nil, requestError(OpAddMultipleToStore, err)
	}
	if u.left == 0 {
		return nil, u.end()
	}
	u.left--
	u.in.SetBudget(u.in.limits.Message)
	info := u.in.pathInfo()
	if err := u.in.Err(); err != nil {
		return nil, requestError(OpAddMultipleToStore, err)
	}
	u.archive = nar.NewReader(u.in.Reader)
	return info, nil
}

// end reads the end of the framed stream and returns io.EOF.
func (u *AddMultipleToStore) end() error {
	switch err := u.in.Wait(); {
	case errors.Is(err, io.EOF):
		u.ended = true
		return io.EOF
	case err != nil:
		return requestError(OpAddMultipleToStore, err)
	}
	return &ProtocolError{
		Operation: OpAddMultipleToStore,
		Text:      fmt.Sprintf("%s: there is more in the upload than it announced", OpAddMultipleToStore),
	}
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
