// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"

	"nixbuilder.io/nix-builder-operator/internal/nix/nar"
	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

// outputsPerFlight bounds the outputs that are asked for before anything is read.
// A daemon that builds does not read, so all requests must fit into what lies
// between it and us, and the smallest such thing is a pipe of 64 KiB.
const outputsPerFlight = 64

// errUnread closes a connection on which answers are left that nobody wants.
var errUnread = errors.New("the build has failed: what was asked about its outputs is not read")

// MissingOutputError says that a daemon reports a successful build without having
// the output.
type MissingOutputError struct {
	// Path is the store path of the output.
	Path string
}

// Error implements error.
func (e *MissingOutputError) Error() string {
	return fmt.Sprintf("the build succeeded but its output %s is not valid", e.Path)
}

// Outputs says which outputs of a build are fetched, and where to.
type Outputs struct {
	// Paths are the store paths of the outputs.
	Paths []string
	// Built, unless nil, is called when the build has succeeded.
	Built func()
	// Take is then called for each output in the order of Paths. It returns what the
	// archive is written to before the next one is taken. Its error ends the call:
	// whoever does not want an archive gives up the connection, and should hold the
	// path by another one first.
	Take func(PathInfo) (io.Writer, error)
}

// BuildOutputs builds drv as BuildDerivation does and fetches the path infos and
// archives of outputs, all asked for at once (36, then 26 and 38 for each output),
// so that a build costs one round trip.
//
// The connection can be used again after a success only. A build that fails is a
// result, not an error; but the answers behind it stay unread, so the connection
// is closed, as it is after any error, that of the daemon included. A success
// without one of the outputs is a *MissingOutputError. An error that comes after the
// result is returned along with it.
func (c *Client) BuildOutputs(ctx context.Context, drvPath string, drv *BasicDerivation, mode BuildMode, sink MessageSink, outputs Outputs) (*BuildResult, error) {
	var result *BuildResult
	err := c.step(ctx, OpBuildDerivation.String(), func() (err error) {
		c.askBuild(drvPath, drv, mode)
		flight := outputs.Paths[:min(len(outputs.Paths), outputsPerFlight)]
		c.askOutputs(flight)
		if result, err = c.readResult(sink); err != nil {
			return c.breakOff(err)
		}
		if !result.Status.Success() {
			_ = c.breakOff(errUnread)
			return nil
		}
		if outputs.Built != nil {
			outputs.Built()
		}
		for rest := outputs.Paths[len(flight):]; ; rest = rest[len(flight):] {
			for _, path := range flight {
				if err := c.readOutput(path, outputs.Take); err != nil {
					return c.breakOff(err)
				}
			}
			if len(rest) == 0 {
				return nil
			}
			flight = rest[:min(len(rest), outputsPerFlight)]
			c.askOutputs(flight)
			if err := c.out.Flush(); err != nil {
				return c.breakOff(c.whyWriteFailed(err, nil))
			}
		}
	})
	return result, err
}

// askBuild buffers the request of BuildDerivation.
func (c *Client) askBuild(drvPath string, drv *BasicDerivation, mode BuildMode) {
	c.out.Uint64(uint64(OpBuildDerivation))
	encodeBuild(c.out, drvPath, drv, mode)
}

// encodeBuild writes what follows the code of BuildDerivation.
func encodeBuild(w *wire.Writer, drvPath string, drv *BasicDerivation, mode BuildMode) {
	w.String(drvPath)
	drv.encode(w)
	w.Uint64(uint64(mode))
}

// askOutputs buffers the requests for path info and archive of paths.
func (c *Client) askOutputs(paths []string) {
	for _, path := range paths {
		c.out.Uint64(uint64(OpQueryPathInfo))
		c.out.String(path)
		c.out.Uint64(uint64(OpNARFromPath))
		c.out.String(path)
	}
}

// readResult sends what is buffered and reads the result of a build.
func (c *Client) readResult(sink MessageSink) (*BuildResult, error) {
	if err := c.out.Flush(); err != nil {
		return nil, c.whyWriteFailed(err, sink)
	}
	if err := c.in.messages(sink); err != nil {
		return nil, err
	}
	c.in.SetBudget(c.in.limits.Message)
	result := c.in.buildResult()
	return result, c.in.Err()
}

// readOutput reads the answers to both questions about an output.
func (c *Client) readOutput(path string, take func(PathInfo) (io.Writer, error)) error {
	info, err := c.readPathInfo(path)
	if err != nil {
		return fmt.Errorf("%s of %s: %w", OpQueryPathInfo, path, err)
	}
	if info == nil {
		return &MissingOutputError{Path: path}
	}
	dst, err := take(*info)
	if err != nil {
		return err
	}
	if err = c.in.messages(nil); err == nil {
		_, err = c.readArchive(dst)
	}
	if err != nil {
		return fmt.Errorf("%s of %s: %w", OpNARFromPath, path, err)
	}
	return nil
}

// readPathInfo reads messages and the reply to QueryPathInfo, nil where the path
// is not valid.
func (c *Client) readPathInfo(path string) (*PathInfo, error) {
	if err := c.in.messages(nil); err != nil {
		return nil, err
	}
	c.in.SetBudget(c.in.limits.Message)
	var info *PathInfo
	if c.in.Bool("valid") {
		info = c.in.unkeyedPathInfo(path)
	}
	return info, c.in.Err()
}

// readArchive copies the archive that comes next to dst.
func (c *Client) readArchive(dst io.Writer) (int64, error) {
	n, err := nar.NewReader(c.in.Reader, c.in.limits.NAR).WriteTo(dst)
	if errors.Is(err, wire.ErrMalformed) {
		err = c.lateError(err)
	}
	return n, err
}
