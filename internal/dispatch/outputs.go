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

// perform has the placement's builder run a derivation and fetches what the client will
// ask for next. A build may be silent for as long as it likes; but a builder that has
// not even begun it may hang, and the user should know.
func (s *supplier) perform(ctx context.Context, p *placement, r *daemon.BuildDerivation) (*daemon.BuildResult, *delivery, error) {
	s.enter(PhaseBuilding)
	begun := s.doing(p.builder, "has not begun the build")
	defer begun()
	result, err := p.session.BuildDerivation(ctx, r.DrvPath, r.Derivation, func(m daemon.Message) error {
		begun()
		return s.relay(m)
	})
	if err != nil || !result.Status.Success() {
		return result, nil, err
	}
	s.enter(PhaseAnswering)
	defer s.doing(p.builder, "returns outputs")()
	d, err := s.collect(ctx, p, r.Derivation, result)
	return result, d, err
}

// collect fetches what the client will ask for next: the path infos of the
// outputs, and their NARs unless they are large. Once it returns, losing the
// builder no longer matters for what is in the spool.
func (s *supplier) collect(ctx context.Context, p *placement, drv *daemon.BasicDerivation, result *daemon.BuildResult) (*delivery, error) {
	d := newDelivery(p.builder, p.session)
	for _, path := range outputPaths(drv, result) {
		out, err := s.collectOne(ctx, p, path)
		if err != nil {
			d.unpin()
			return nil, err
		}
		d.outputs[path] = out
	}
	return d, nil
}

func (s *supplier) collectOne(ctx context.Context, p *placement, path string) (*output, error) {
	info, valid, err := p.session.QueryPathInfo(ctx, path)
	if err != nil {
		return nil, err
	}
	if !valid {
		return nil, fmt.Errorf("builder %s reports success but does not have the output %s", p.builder, path)
	}
	out := &output{info: *info}
	// What the spool has from a run with another result, which may have ended between
	// two outputs, must not be mixed with this one in a later build either.
	s.server.opts.Spool.Forget(path, info.NARHash)
	if info.NARSize > s.server.limits.SpooledOutput {
		return out, nil
	}
	pin, ok := s.server.opts.Spool.Pin(path)
	if !ok {
		s.enter(PhaseReturning)
		pin, err = s.intoSpool(info, func(w io.Writer) error { return p.session.NARFromPath(ctx, path, w) })
	}
	switch {
	case errors.Is(err, errUnspooled):
		return out, nil
	case err != nil:
		return nil, err
	case pin.Info().NARHash != info.NARHash:
		// Another run was faster in this moment. This one comes from its builder.
		pin.Release()
		return out, nil
	}
	out.pin = pin
	return out, nil
}

// outputPaths lists the store paths that a successful build has made.
func outputPaths(drv *daemon.BasicDerivation, result *daemon.BuildResult) []string {
	var paths []string
	named := map[string]bool{}
	for _, out := range drv.Outputs {
		if out.Path != "" {
			paths = append(paths, out.Path)
			named[out.Name] = true
		}
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
		for range s.server.limits.Attempts {
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
		_, err = io.Copy(w.again(), nar)
		return false, err
	}
	at := d.state()
	if d.using.TryLock() {
		err := at.session.NARFromPath(ctx, out.info.Path, w.again())
		d.using.Unlock()
		if !isLost(err) {
			return failedThere(err), err
		}
		// Its daemon was restarted, perhaps: what it has built may still be there.
		s.log.Warn("Session of a build was lost before its output was fetched", "builder", at.builder, "path", out.info.Path, "error", err)
	}
	// Or another connection of the client is using the session of the build.
	err = s.readAnew(ctx, at.builder, out, w)
	return failedThere(err), err
}

// readAnew reads an output over a session of its own, if it is still the same.
func (s *session) readAnew(ctx context.Context, builder string, out *output, w *resumed) error {
	from, err := s.server.opts.Builders.Open(ctx, builder)
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
	return from.NARFromPath(ctx, out.info.Path, w.again())
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
