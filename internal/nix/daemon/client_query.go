// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"context"
	"encoding/binary"
	"io"

	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

// QueryValidPaths (31) returns those of paths that the daemon's store has. With
// substitute the daemon first tries to fetch the others, which may take long.
func (c *Client) QueryValidPaths(ctx context.Context, paths []string, substitute bool, sink MessageSink) ([]string, error) {
	return c.queryPaths(ctx, OpQueryValidPaths, sink, func(w *wire.Writer) {
		w.Strings(paths)
		w.Bool(substitute)
	})
}

// QuerySubstitutablePaths (32) returns those of paths that the daemon could fetch
// from its substituters.
func (c *Client) QuerySubstitutablePaths(ctx context.Context, paths []string, sink MessageSink) ([]string, error) {
	return c.queryPaths(ctx, OpQuerySubstitutablePaths, sink, func(w *wire.Writer) { w.Strings(paths) })
}

func (c *Client) queryPaths(ctx context.Context, op Operation, sink MessageSink, request func(*wire.Writer)) ([]string, error) {
	var found []string
	err := c.call(ctx, op, sink, request, func(d *decoder) error {
		found = d.paths("paths")
		return d.Err()
	})
	return found, err
}

// QueryPathInfo (26) returns what the daemon's store knows about path, or false
// where the path is not valid there.
func (c *Client) QueryPathInfo(ctx context.Context, path string, sink MessageSink) (*PathInfo, bool, error) {
	var info *PathInfo
	err := c.call(ctx, OpQueryPathInfo, sink, func(w *wire.Writer) { w.String(path) }, func(d *decoder) error {
		if d.Bool("valid") {
			info = d.unkeyedPathInfo(path)
		}
		return d.Err()
	})
	return info, info != nil && err == nil, err
}

// NARFromPath (38) writes the archive of path to dst and returns its size. An
// error of dst closes the connection.
func (c *Client) NARFromPath(ctx context.Context, path string, dst io.Writer, sink MessageSink) (int64, error) {
	var n int64
	err := c.call(ctx, OpNARFromPath, sink, func(w *wire.Writer) { w.String(path) }, func(*decoder) (err error) {
		n, err = c.readArchive(dst)
		return err
	})
	return n, err
}

// lateError looks whether what makes an archive malformed is an error of the
// daemon. Many daemons look for a path only after the last message, or when they
// have begun the archive, and then send the error in the middle of it and close.
func (c *Client) lateError(malformed error) error {
	if c.in.Buffered() < 8 {
		return malformed
	}
	b, err := c.in.Window(8)
	if err != nil || binary.LittleEndian.Uint64(b) != stderrError {
		return malformed
	}
	if _, err = c.in.message(); !isRemote(err) {
		return malformed
	}
	return c.breakOff(err)
}
