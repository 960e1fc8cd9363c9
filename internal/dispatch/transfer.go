// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"errors"
	"io"
	"slices"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/spool"
)

// smallTransfer is up to how many bytes, in all, inputs go over the session that
// builds. Larger transfers have connections of their own, so that nobody's log or
// question waits behind them, and so that several are as fast as a long line allows.
const smallTransfer = 1 << 20

// maxResends bounds how often one transfer to a builder is begun again.
const maxResends = 3

// supply makes sure that the placement's builder has paths and keeps them: it asks
// what is missing and sends that, from the spool or from another builder.
//
// A transfer that the builder refuses is begun again if somebody else, such as another
// build, has brought a part of it meanwhile: Nix 2.8 does not read the NAR of a path that
// has become valid, and then takes it for the next path.
func (s *supplier) supply(ctx context.Context, p *placement, paths []string) error {
	if err := s.settleForward(ctx, p.builder); err != nil {
		return err
	}
	for again := 0; ; again++ {
		missing, err := s.lacking(ctx, p, paths)
		if err != nil || len(missing) == 0 {
			return err
		}
		err = s.bring(ctx, p, missing)
		var refused *daemon.RemoteError
		if p.bound || again == maxResends || !errors.As(err, &refused) {
			return err
		}
		if failed := s.renew(ctx, p, paths); failed != nil {
			return failed
		}
		if !slices.ContainsFunc(missing, s.holds.keptOn(p.builder)) {
			return err
		}
		s.log.Info("Transfer is begun again: others have brought a part of it", "builder", p.builder, "error", err)
	}
}

// bring sends paths to the placement's builder.
func (s *supplier) bring(ctx context.Context, p *placement, missing []string) error {
	parcels, err := s.gather(ctx, missing, p.builder)
	if err != nil {
		return err
	}
	defer s.doing(p.builder, "receives inputs")()
	if parcels = inOrder(parcels); sizeOf(parcels) > smallTransfer && !p.bound {
		return s.sendApart(ctx, p.builder, parcels)
	}
	if err := send(ctx, p.session, parcels, s.relay); err != nil {
		return err
	}
	for _, path := range missing {
		p.has[path] = true
	}
	s.server.opts.Builders.Believe(p.builder, missing)
	return nil
}

// lacking returns those of paths that the placement's builder does not have, after it
// has fetched what it can where that is allowed.
func (s *supplier) lacking(ctx context.Context, p *placement, paths []string) ([]string, error) {
	sure := func(path string) bool { return p.has[path] || s.holds.has(p.builder, path) }
	missing := without(paths, sure)
	if unasked := s.holds.unasked(p.builder, missing); len(unasked) > 0 {
		done := s.doing(p.builder, "looks for inputs")
		err := s.holds.ask(ctx, p.builder, unasked)
		done()
		if err != nil {
			return nil, err
		}
		missing = without(missing, sure)
	}
	if !s.substitute || len(missing) == 0 {
		return missing, nil
	}
	defer s.doing(p.builder, "fetches inputs from its binary caches")()
	fetched, err := p.session.QueryValidPaths(ctx, missing, true, s.relay)
	for _, path := range fetched {
		p.has[path] = true
	}
	return without(missing, sure), err
}

// restock is for a build that may have failed because inputs were not there: it asks
// anew, on a new session, and sends what was missing. It reports whether something
// was.
func (s *supplier) restock(ctx context.Context, p *placement, paths []string) (bool, error) {
	if err := s.renew(ctx, p, paths); err != nil {
		return false, err
	}
	missing, err := s.lacking(ctx, p, paths)
	if err != nil || len(missing) == 0 {
		return false, err
	}
	s.enter(PhaseUploading)
	return true, s.supply(ctx, p, paths)
}

// renew asks a builder anew which of paths it has, and goes on with a new session.
func (s *supplier) renew(ctx context.Context, p *placement, paths []string) error {
	s.holds.doubt(p.builder)
	if err := s.holds.ask(ctx, p.builder, paths); err != nil {
		return err
	}
	session, err := s.server.opts.Builders.Open(ctx, p.builder)
	if err != nil {
		return err
	}
	p.session.Close()
	p.session, p.has = session, map[string]bool{}
	return nil
}

// sendApart sends parcels on a connection of their own. What has arrived is held
// before the session that has received it ends.
func (s *supplier) sendApart(ctx context.Context, builder string, parcels []parcel) error {
	session, err := s.server.opts.Builders.OpenBulk(ctx, builder)
	if err != nil {
		return err
	}
	defer session.Close()
	if err := send(ctx, session, parcels, s.relay); err != nil {
		return err
	}
	return s.holds.ask(ctx, builder, storePathsOf(parcels))
}

// parcel is a path to be sent.
type parcel struct {
	info daemon.PathInfo
	// open returns a reader of the NAR.
	open func() (io.ReadCloser, error)
}

func fromSpool(pin *spool.Pin) parcel {
	return parcel{info: pin.Info(), open: func() (io.ReadCloser, error) { return pin.Open() }}
}

func sizeOf(parcels []parcel) (sum uint64) {
	for i := range parcels {
		sum += parcels[i].info.NARSize
	}
	return sum
}

func storePathsOf(parcels []parcel) []string {
	paths := make([]string, len(parcels))
	for i := range parcels {
		paths[i] = parcels[i].info.Path
	}
	return paths
}

// send uploads parcels to a builder in the order given.
func send(ctx context.Context, to Builder, parcels []parcel, sink daemon.MessageSink) error {
	var open io.Closer
	next := 0
	closeLast := func() {
		if open != nil {
			open.Close()
			open = nil
		}
	}
	err := to.AddMultipleToStore(ctx, daemon.PathSource{
		Count: len(parcels),
		Next: func() (daemon.PathInfo, io.Reader, error) {
			closeLast()
			one := parcels[next]
			next++
			nar, err := one.open()
			if err != nil {
				return daemon.PathInfo{}, nil, err
			}
			open = nar
			// Whoever receives a path has not built it.
			one.info.Ultimate = false
			return one.info, nar, nil
		},
	}, sink)
	closeLast()
	return err
}

// inOrder sorts parcels so that what a path refers to comes before it, keeping
// the order given otherwise. Only references among the parcels count.
func inOrder(parcels []parcel) []parcel {
	index := make(map[string]int, len(parcels))
	for i := range parcels {
		index[parcels[i].info.Path] = i
	}
	waits := make([]int, len(parcels))
	users := make([][]int, len(parcels))
	for i := range parcels {
		for _, ref := range parcels[i].info.References {
			if j, ok := index[ref]; ok && j != i {
				waits[i]++
				users[j] = append(users[j], i)
			}
		}
	}
	var ready []int
	for i, n := range waits {
		if n == 0 {
			ready = append(ready, i)
		}
	}
	sorted := make([]parcel, 0, len(parcels))
	for len(ready) > 0 {
		i := ready[0]
		ready = ready[1:]
		sorted = append(sorted, parcels[i])
		for _, user := range users[i] {
			if waits[user]--; waits[user] == 0 {
				ready = append(ready, user)
			}
		}
	}
	if len(sorted) < len(parcels) {
		// A cycle, which no store has: let the builder refuse it.
		return parcels
	}
	return sorted
}
