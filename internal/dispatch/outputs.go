// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"

	"nixbuilder.io/nix-builder-operator/internal/dispatch/fleet"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/storepath"
)

// storeDir is the store directory of builders and clients.
const storeDir = "/nix/store"

// outputPaths lists the store paths that a successful build makes: those that the
// derivation names, and those that only the result does, if there is one.
func outputPaths(drv *daemon.BasicDerivation, result *daemon.BuildResult) []string {
	var paths []string
	named := map[string]bool{}
	for _, out := range drv.Outputs {
		if out.Path != "" {
			paths = append(paths, out.Path)
			named[out.Name] = true
		}
	}
	if result == nil {
		return distinct(paths)
	}
	for _, built := range result.BuiltOutputs {
		if named[built.Name()] {
			continue
		}
		var realisation struct {
			OutPath string `json:"outPath"`
		}
		if json.Unmarshal([]byte(built.Realisation), &realisation) != nil {
			continue
		}
		if p, err := storepath.Parse(storeDir, path.Join(storeDir, realisation.OutPath)); err == nil {
			paths = append(paths, p.String())
		}
	}
	return distinct(paths)
}

// queryPathInfo answers operation 26 for outputs of the client's own builds.
// Other paths do not exist for it.
func (s *session) queryPathInfo(r *daemon.QueryPathInfo) error {
	_, out := s.hook.find(r.Path)
	if out == nil {
		return s.daemon.ReplyPathInfo(nil, false)
	}
	return s.daemon.ReplyPathInfo(&out.info, true)
}

// narFromPath answers operation 38 for outputs of the client's own builds.
func (s *session) narFromPath(r *daemon.NARFromPath) error {
	d, out := s.hook.find(r.Path)
	if out == nil {
		return fmt.Errorf("%s is not an output of a build of this client", r.Path)
	}
	if err := s.sendOutput(d, out); err != nil {
		return err
	}
	s.hook.fetched(d, r.Path)
	return nil
}

// sendOutput sends the NAR of an output. If its builder is lost on the way, the build is
// run again elsewhere, and the NAR goes on where it was left.
func (s *session) sendOutput(d *delivery, out *output) error {
	ctx, stop := s.daemon.WatchHangup(s.ctx)
	defer stop()
	return s.daemon.StreamNAR(func(w io.Writer) error {
		to := &resumed{to: w}
		for range s.server.limits.Losses {
			generation := d.state().generation
			failed, err := s.readOutput(ctx, d, out, to)
			if !failed || ctx.Err() != nil {
				return err
			}
			if err := s.restore(ctx, d, generation, err); err != nil {
				s.log.Warn("Output is lost", "path", out.info.Path, "bytes", to.written, "error", err)
				return err
			}
		}
		return fmt.Errorf("output %s was lost with its builder again and again", out.info.Path)
	})
}

// readOutput writes the NAR of an output to w, from the spool or from its builder. It
// reports whether it was the builder that failed.
func (s *session) readOutput(ctx context.Context, d *delivery, out *output, w *resumed) (failed bool, err error) {
	if pin := d.pin(out); pin != nil {
		nar, err := pin.Open()
		if err != nil {
			return false, err
		}
		defer nar.Close()
		return false, inPieces(w.again(), nar, out.info.NARSize)
	}
	builder := d.state().builder
	if err = s.readThere(ctx, builder, out, w); isLost(err) && ctx.Err() == nil {
		// Its daemon was restarted, perhaps: what it has built may still be there.
		s.log.Info("Builder was lost while it returned an output", "builder", builder, "path", out.info.Path, "error", err)
		err = s.readThere(ctx, builder, out, w)
	}
	return failedThere(err), err
}

// readThere reads an output from its builder, if it is still the same.
func (s *session) readThere(ctx context.Context, builder string, out *output, w *resumed) error {
	open := s.server.opts.Builders.Open
	if out.info.NARSize > smallTransfer {
		open = s.server.opts.Builders.OpenBulk
	}
	from, err := open(ctx, builder)
	if err != nil {
		return err
	}
	defer from.Close()
	info, valid, err := from.QueryPathInfo(ctx, out.info.Path)
	if err != nil {
		return err
	}
	if !valid || info.NARHash != out.info.NARHash {
		return &fleet.LostError{Builder: builder, Err: errOutputGone}
	}
	return from.NARFromPath(ctx, out.info.Path, urgent{s, w.again()})
}

// errOutputGone means that a builder no longer has what it has built.
var errOutputGone = errors.New("the output is gone")

// failedThere reports whether err is a builder that is lost, or no longer has what it
// has built.
func failedThere(err error) bool {
	var remote *daemon.RemoteError
	return isLost(err) || errors.As(err, &remote)
}

func isLost(err error) bool {
	var lost *fleet.LostError
	return errors.As(err, &lost)
}
