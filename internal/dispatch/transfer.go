// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/spool"
)

// sourceTimeout bounds asking builders for an input that is needed.
const sourceTimeout = 30 * time.Second

// supply makes sure that the placement's builder has paths: it asks what is
// missing and sends that, from the spool or from another builder.
func (s *supplier) supply(ctx context.Context, p *placement, paths []string) error {
	var unsure []string
	for _, path := range paths {
		if !p.has[path] {
			unsure = append(unsure, path)
		}
	}
	if len(unsure) == 0 {
		return nil
	}
	valid, err := s.lookUp(ctx, p, unsure)
	if err != nil {
		return err
	}
	for _, path := range valid {
		p.has[path] = true
	}
	var missing []string
	for _, path := range unsure {
		if !p.has[path] {
			missing = append(missing, path)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	parcels, err := s.gather(ctx, missing, p.builder)
	if err != nil {
		return err
	}
	defer s.doing(p.builder, "receives inputs")()
	if err := send(ctx, p.session, inOrder(parcels), s.relay); err != nil {
		return err
	}
	for _, path := range missing {
		p.has[path] = true
	}
	return nil
}

// lookUp asks the placement's builder which of paths it has, after fetching what it
// can where that is allowed.
func (s *supplier) lookUp(ctx context.Context, p *placement, paths []string) ([]string, error) {
	text := "looks for inputs"
	if s.substitute {
		text = "fetches inputs from its binary caches"
	}
	defer s.doing(p.builder, text)()
	return p.session.QueryValidPaths(ctx, paths, s.substitute, s.relay)
}

// parcel is a path to be sent.
type parcel struct {
	info daemon.PathInfo
	// open returns a reader of the NAR.
	open func() (io.ReadCloser, error)
}

// gather finds where paths can be had from. What is on other builders only is
// fetched into the spool first, or, where that has no room, passed through.
func (s *supplier) gather(ctx context.Context, paths []string, target string) ([]parcel, error) {
	var parcels []parcel
	var away []string
	for _, path := range paths {
		if pin := s.inputs.pin(path); pin != nil {
			parcels = append(parcels, fromSpool(pin))
		} else {
			away = append(away, path)
		}
	}
	if len(away) == 0 {
		return parcels, nil
	}
	others := s.sources(target)
	holders := s.whoHas(ctx, others, away)
	from := donors{builders: s.server.opts.Builders, open: map[string]Builder{}}
	defer from.close()
	for _, path := range away {
		one, err := s.fetch(ctx, from, path, holders[path], others)
		if err != nil {
			return nil, err
		}
		parcels = append(parcels, one)
	}
	return parcels, nil
}

func fromSpool(pin *spool.Pin) parcel {
	return parcel{info: pin.Info(), open: func() (io.ReadCloser, error) { return pin.Open() }}
}

// whoHas asks builders for paths that the build cannot do without. So it has more
// patience than a question for the sake of speed, and asks those that were late, too.
func (s *supplier) whoHas(ctx context.Context, ids, paths []string) map[string][]string {
	ctx, cancel := context.WithTimeout(ctx, sourceTimeout)
	defer cancel()
	return s.server.holders(ctx, ids, paths, 1)
}

// fetch gets a path from the first of the holders that gives it, or else from
// another builder that has it, too.
func (s *supplier) fetch(ctx context.Context, from donors, path string, holders, all []string) (parcel, error) {
	reasons := []error{fmt.Errorf("input %s is no longer in the spool nor on a builder that could be asked: start the build again", path)}
	for len(holders) > 0 {
		for _, id := range holders {
			one, err := s.fetchFrom(ctx, from, path, id)
			if err == nil {
				return one, nil
			}
			from.drop(id)
			if ctx.Err() != nil {
				return parcel{}, context.Cause(ctx)
			}
			reasons = append(reasons, err)
		}
		tried := holders
		all = slices.DeleteFunc(slices.Clone(all), func(id string) bool { return slices.Contains(tried, id) })
		holders = s.whoHas(ctx, all, []string{path})[path]
	}
	return parcel{}, errors.Join(reasons...)
}

// donors are sessions on builders that give inputs, kept for further ones.
type donors struct {
	builders Builders
	open     map[string]Builder
}

func (d donors) get(ctx context.Context, id string) (Builder, error) {
	if session := d.open[id]; session != nil {
		return session, nil
	}
	session, err := d.builders.Open(ctx, id)
	if err == nil {
		d.open[id] = session
	}
	return session, err
}

// drop ends a session that has failed.
func (d donors) drop(id string) {
	if session := d.open[id]; session != nil {
		session.Close()
		delete(d.open, id)
	}
}

func (d donors) close() {
	for id := range d.open {
		d.drop(id)
	}
}

// fetchFrom gets a path from one builder.
func (s *supplier) fetchFrom(ctx context.Context, from donors, path, id string) (parcel, error) {
	source, err := from.get(ctx, id)
	if err != nil {
		return parcel{}, err
	}
	info, valid, err := source.QueryPathInfo(ctx, path)
	if err != nil {
		return parcel{}, err
	}
	if !valid {
		return parcel{}, fmt.Errorf("builder %s no longer has %s", id, path)
	}
	pin, err := s.intoSpool(info, func(w io.Writer) error { return source.NARFromPath(ctx, path, w) })
	if errors.Is(err, errUnspooled) {
		return parcel{info: *info, open: func() (io.ReadCloser, error) { return s.passThrough(ctx, path, id), nil }}, nil
	}
	if err != nil {
		return parcel{}, err
	}
	s.inputs.put(pin)
	return fromSpool(pin), nil
}

// passThrough reads a NAR from a builder while it is sent to another.
func (s *supplier) passThrough(ctx context.Context, path, id string) io.ReadCloser {
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		source, err := s.server.opts.Builders.Open(ctx, id)
		if err == nil {
			err = source.NARFromPath(ctx, path, w)
			source.Close()
		}
		w.CloseWithError(err)
	}()
	return passage{PipeReader: r, stop: func() {
		cancel()
		r.Close()
		<-done
	}}
}

// passage is the reader of passThrough. Close joins its goroutine.
type passage struct {
	*io.PipeReader
	stop func()
}

func (p passage) Close() error {
	p.stop()
	return nil
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
