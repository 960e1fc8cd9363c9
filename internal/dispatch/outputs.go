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
	"sync"

	"nixbuilder.io/nix-builder-operator/internal/connect"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/storepath"
	"nixbuilder.io/nix-builder-operator/internal/spool"
)

// storeDir is the store directory of builders and clients.
const storeDir = "/nix/store"

// output is an output of a build that has succeeded.
type output struct {
	info daemon.PathInfo
	// pin is set if the NAR is in the spool.
	pin *spool.Pin
	// builder has the path, and keeps it while owner's session there lasts.
	builder string
	owner   *session
}

// collect fetches what the client will ask for next: the path infos of the
// outputs, and their NARs unless they are large. Once it returns, losing the
// builder no longer matters for what is in the spool.
func (s *session) collect(ctx context.Context, p *placement, drv *daemon.BasicDerivation, result *daemon.BuildResult) ([]*output, error) {
	var outputs []*output
	for _, path := range outputPaths(drv, result) {
		out, err := s.collectOne(ctx, p, path)
		if err != nil {
			for _, out := range outputs {
				out.release()
			}
			return nil, err
		}
		outputs = append(outputs, out)
	}
	return outputs, nil
}

func (s *session) collectOne(ctx context.Context, p *placement, path string) (*output, error) {
	info, valid, err := p.session.QueryPathInfo(ctx, path)
	if err != nil {
		return nil, err
	}
	if !valid {
		return nil, fmt.Errorf("builder %s reports success but does not have the output %s", p.builder, path)
	}
	out := &output{info: *info, builder: p.builder, owner: s}
	if info.NARSize > s.server.limits.SpooledOutput {
		return out, nil
	}
	pin, ok := s.server.opts.Spool.Pin(path)
	if !ok {
		pin, err = s.intoSpool(ctx, p.session, info)
	}
	switch {
	case errors.Is(err, spool.ErrNoRoom):
		return out, nil
	case err != nil:
		return nil, err
	case pin.Info().NARHash != info.NARHash:
		// The spool has it from another run with another result. Outputs of two
		// runs must not be mixed, so this one comes from its builder.
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
	return paths
}

func (o *output) release() {
	if o.pin != nil {
		o.pin.Release()
	}
}

// keep makes outputs available to the client and holds on to the builder's
// session, so that its garbage collector spares them.
func (s *session) keep(p *placement, outputs []*output) {
	if s.built != nil {
		s.built.Close()
	}
	s.built, s.kept = p.session, p.builder
	s.server.outputs.add(s.hook, outputs)
}

// queryPathInfo answers operation 26 for outputs of the client's own builds.
// Other paths do not exist for it.
func (s *session) queryPathInfo(r *daemon.QueryPathInfo) error {
	out := s.server.outputs.find(s, r.Path)
	if out == nil {
		return s.daemon.ReplyPathInfo(nil, false)
	}
	return s.daemon.ReplyPathInfo(&out.info, true)
}

// narFromPath answers operation 38 for outputs of the client's own builds.
func (s *session) narFromPath(r *daemon.NARFromPath) error {
	out := s.server.outputs.find(s, r.Path)
	if out == nil {
		return fmt.Errorf("%s is not an output of a build of this client", r.Path)
	}
	if out.pin != nil {
		nar, err := out.pin.Open()
		if err != nil {
			return err
		}
		defer nar.Close()
		return s.daemon.ReplyNAR(nar)
	}
	ctx, stop := s.daemon.WatchHangup(s.ctx)
	defer stop()
	from := s.built
	if out.owner != s || from == nil || out.builder != s.kept {
		// Another connection of the client owns the session that the build ran
		// in, and may be using it.
		var err error
		if from, err = s.server.opts.Builders.Open(ctx, out.builder); err != nil {
			return err
		}
		defer from.Close()
	}
	return s.daemon.StreamNAR(func(w io.Writer) error { return from.NARFromPath(ctx, r.Path, w) })
}

// registry knows the outputs of builds by the client's process, because some
// clients fetch them over further connections.
type registry struct {
	mu sync.Mutex
	// outputs are those of one build hook, which serves one derivation.
	outputs map[connect.Key]map[string]*output
	// own are those of one session, for clients whose process is not known.
	own map[*session]map[string]*output
}

func newRegistry() *registry {
	return &registry{outputs: map[connect.Key]map[string]*output{}, own: map[*session]map[string]*output{}}
}

// identified reports whether a key tells processes apart.
func identified(key connect.Key) bool { return key.Namespace != 0 && key.PID != 0 }

func (r *registry) add(key connect.Key, outputs []*output) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, out := range outputs {
		if r.own[out.owner] == nil {
			r.own[out.owner] = map[string]*output{}
		}
		if old := r.own[out.owner][out.info.Path]; old != nil {
			old.release()
		}
		r.own[out.owner][out.info.Path] = out
		if !identified(key) {
			continue
		}
		if r.outputs[key] == nil {
			r.outputs[key] = map[string]*output{}
		}
		r.outputs[key][out.info.Path] = out
	}
}

// find returns an output that the session may see, or nil.
func (r *registry) find(s *session, path string) *output {
	r.mu.Lock()
	defer r.mu.Unlock()
	if out := r.own[s][path]; out != nil {
		return out
	}
	return r.outputs[s.hook][path]
}

// drop forgets the outputs of a session that ends.
func (r *registry) drop(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for path, out := range r.own[s] {
		out.release()
		if shared := r.outputs[s.hook]; shared[path] == out {
			delete(shared, path)
			if len(shared) == 0 {
				delete(r.outputs, s.hook)
			}
		}
	}
	delete(r.own, s)
}
