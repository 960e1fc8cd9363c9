// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/spool"
)

// inlineOutput is the largest output, in bytes, that is read over the session which
// has built it. Larger ones would keep the builder's other sessions on that
// connection waiting.
const inlineOutput = 8 << 20

// errApart ends the flight of a build of which an output comes over another session.
var errApart = errors.New("the output is fetched apart")

// perform has the placement's builder run a derivation and fetches what the client will
// ask for next: the path infos of the outputs, and their NARs unless they are large.
// Once it returns, losing the builder no longer matters for what is in the spool.
//
// A build may be silent for as long as it likes; but a builder that has not even begun
// it may hang, and the user should know.
func (s *supplier) perform(ctx context.Context, p *placement, r *daemon.BuildDerivation) (*daemon.BuildResult, *delivery, error) {
	s.enter(PhaseBuilding)
	begun := s.doing(p.builder, "has not begun the build")
	defer begun()
	c := &collector{supplier: s, ctx: ctx, placement: p, drv: r.Derivation, delivery: newDelivery(p.builder)}
	defer c.end()
	result, err := p.session.BuildOutputs(ctx, r.DrvPath, r.Derivation, func(m daemon.Message) error {
		begun()
		return s.relay(m)
	}, daemon.Outputs{
		Paths: outputPaths(r.Derivation, nil),
		Built: func() {
			begun()
			s.enter(PhaseAnswering)
		},
		Take: c.take,
	})
	if err == nil && !result.Status.Success() {
		return result, nil, nil
	}
	from := p.session
	if errors.Is(err, errApart) {
		from, err = nil, nil
	}
	if err == nil {
		err = c.rest(from, outputPaths(r.Derivation, result))
	}
	var missing *daemon.MissingOutputError
	if errors.As(err, &missing) {
		err = c.lacks(missing.Path)
	}
	if err != nil {
		return result, nil, err
	}
	return result, c.deliver(), nil
}

// collector takes the outputs of one build.
type collector struct {
	*supplier
	ctx       context.Context
	placement *placement
	drv       *daemon.BasicDerivation
	// delivery has the outputs that were taken. It is nil once it was delivered.
	delivery *delivery
	// apart is the session over which outputs are fetched that do not come with the build;
	// nil as long as none was needed.
	apart Builder
	// into is where the latest output goes; nil if it goes nowhere.
	into *spoolWriter
}

// take tells where the archive of the next output goes: into the spool, or nowhere, if
// it is there already. What is too large for this session ends the flight; before
// that, all outputs are held.
func (c *collector) take(info daemon.PathInfo) (io.Writer, error) {
	if err := c.commit(); err != nil {
		return nil, err
	}
	c.enter(PhaseReturning)
	if pin := c.pinned(&info); pin != nil {
		c.add(info, pin)
		return io.Discard, nil
	}
	stays := info.NARSize > c.server.limits.SpooledOutput
	if !stays && info.NARSize <= inlineOutput {
		if into, err := c.create(&info); err == nil {
			c.into = into
			return into, nil
		}
		stays = true
	}
	err := c.keep(outputPaths(c.drv, nil)...)
	if err == nil && !stays {
		c.apart, err = c.server.opts.Builders.OpenBulk(c.ctx, c.placement.builder)
	}
	if isLost(err) && !stays {
		// The builder gives no other session, now or ever, but this one works.
		if into, err := c.create(&info); err == nil {
			c.into = into
			return into, nil
		}
	}
	if err != nil {
		return nil, err
	}
	if stays {
		c.add(info, nil)
	}
	return nil, errApart
}

// pinned returns the pin of an output that is in the spool already, or nil. What the
// spool has from a run with another result, which may have ended between two outputs,
// must not be mixed with this one, now or in a later build.
func (c *collector) pinned(info *daemon.PathInfo) *spool.Pin {
	c.server.opts.Spool.Forget(info.Path, info.NARHash)
	pin, _ := c.server.opts.Spool.Pin(info.Path)
	if pin != nil && pin.Info().NARHash != info.NARHash {
		pin.Release() // another run was faster in this moment
		return nil
	}
	return pin
}

// add makes an output part of the delivery; without a pin it stays on its builder.
func (c *collector) add(info daemon.PathInfo, pin *spool.Pin) {
	c.delivery.outputs[info.Path] = &output{info: info, pin: pin}
}

// commit ends the output that was written last.
func (c *collector) commit() error {
	into := c.into
	if into == nil {
		return nil
	}
	c.into = nil
	pin, err := into.commit()
	if errors.Is(err, errUnspooled) {
		return c.leave(into.info)
	}
	if err != nil {
		return err
	}
	if pin.Info().NARHash != into.info.NARHash {
		pin.Release() // somebody has put the result of another run there
		return c.leave(into.info)
	}
	c.add(into.info, pin)
	return nil
}

// leave leaves an output on its builder, from which the client gets it.
func (c *collector) leave(info daemon.PathInfo) error {
	if err := c.keep(info.Path); err != nil {
		return err
	}
	c.add(info, nil)
	return nil
}

// keep makes sure that outputs stay on their builder when its session ends.
func (c *collector) keep(paths ...string) error {
	builder := c.placement.builder
	if c.delivery.hold == nil {
		hold, err := c.server.opts.Builders.Hold(c.ctx, builder, nil)
		if err != nil {
			return err
		}
		c.delivery.hold = hold
	}
	hold := c.delivery.hold
	if err := hold.Add(c.ctx, paths); err != nil {
		return err
	}
	if i := slices.IndexFunc(paths, func(path string) bool { return !hold.Has(path) }); i >= 0 {
		return c.lacks(paths[i])
	}
	return nil
}

func (c *collector) lacks(path string) error {
	return fmt.Errorf("builder %s reports success but does not have the output %s", c.placement.builder, path)
}

// rest fetches those of the outputs that were not in the flight. Without a session
// they are held, and fetched over one for large transfers.
func (c *collector) rest(from Builder, paths []string) error {
	if err := c.commit(); err != nil {
		return err
	}
	paths = without(paths, func(path string) bool { return c.delivery.outputs[path] != nil })
	if len(paths) == 0 {
		return nil
	}
	c.enter(PhaseAnswering)
	if from == nil && c.apart == nil {
		var err error
		if c.apart, err = c.server.opts.Builders.OpenBulk(c.ctx, c.placement.builder); err != nil {
			return err
		}
	}
	if from == nil {
		from = c.apart
	}
	for _, path := range paths {
		if err := c.fetch(from, path); err != nil {
			return err
		}
	}
	return nil
}

// fetch puts an output into the spool, unless it is large.
func (c *collector) fetch(from Builder, path string) error {
	info, valid, err := from.QueryPathInfo(c.ctx, path)
	if err != nil {
		return err
	}
	if !valid {
		return c.lacks(path)
	}
	if pin := c.pinned(info); pin != nil {
		c.add(*info, pin)
		return nil
	}
	if info.NARSize > c.server.limits.SpooledOutput {
		return c.leave(*info)
	}
	if c.into, err = c.create(info); err != nil {
		return c.leave(*info)
	}
	c.enter(PhaseReturning)
	if err := from.NARFromPath(c.ctx, path, c.into); err != nil {
		return err
	}
	return c.commit()
}

// deliver returns the delivery.
func (c *collector) deliver() *delivery {
	d := c.delivery
	c.delivery = nil
	if d.spooled() {
		d.letGo()
	}
	c.server.opts.Builders.Believe(c.placement.builder, slices.Collect(maps.Keys(d.outputs)))
	return d
}

// end gives back what was not delivered.
func (c *collector) end() {
	if c.into != nil {
		c.into.to.Abort()
	}
	if c.apart != nil {
		c.apart.Close()
	}
	if c.delivery != nil {
		c.delivery.release()
	}
}
