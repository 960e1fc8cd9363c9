// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"nixbuilder.io/nix-builder-operator/test/bench/figures"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

const (
	// lossyInputs are uploaded at the same time, each for a build of its own.
	lossyInputs = 8
	// transferLimit bounds one run.
	transferLimit = 15 * time.Minute
)

// transfer measures the ways with one large input and one large output, and with
// several inputs at once on a lossy line.
func (r *run) transfer(ctx context.Context, s *site) error {
	t, err := s.threeWays(ctx, loopback)
	if err != nil {
		return err
	}
	defer t.Close()
	for round := range r.rounds(loopback) {
		for _, w := range t.inRound(round) {
			if err := r.upload(ctx, s, t.dispatcher, w); err != nil {
				return err
			}
			if err := r.download(ctx, s, t.dispatcher, w); err != nil {
				return err
			}
		}
	}
	return r.addPeak(s, t.dispatcher)
}

// upload takes a build that does nothing with its large input.
func (r *run) upload(ctx context.Context, s *site, d *dispatcher, w way) error {
	name := s.name("upload")
	input, err := s.addRandom(ctx, s.client, name, r.options.mebibytes)
	if err != nil {
		return err
	}
	err = r.time(s, d, "upload", w.name, func() (time.Duration, error) {
		return s.build(ctx, s.client, w, consuming(name, input), transferLimit)
	})
	if err != nil {
		return err
	}
	return s.collectGarbage(ctx)
}

// download takes a build with a large output. The time counts from the moment when
// the build's last command has ended.
func (r *run) download(ctx context.Context, s *site, d *dispatcher, w way) error {
	name := s.name("download")
	err := r.time(s, d, "download", w.name, func() (time.Duration, error) {
		took, err := s.build(ctx, s.client, w, producing(name, r.options.mebibytes), transferLimit)
		ended := time.Now()
		if err != nil {
			return 0, err
		}
		done, err := s.stations[0].Exec(ctx, "cat", "/tmp/done-"+name)
		if err != nil {
			return 0, err
		}
		nanoseconds, err := strconv.ParseInt(strings.TrimSpace(done), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("the time at which a build was done: %w", err)
		}
		return min(took, ended.Sub(time.Unix(0, nanoseconds))), nil
	})
	if err != nil {
		return err
	}
	return s.collectGarbage(ctx)
}

// consuming is a build with one input, a path that the client has.
func consuming(name, input string) string {
	return fmt.Sprintf(`derivation { name = %q; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/usr/bin:/bin";
	args = [ "-c" "test -s $input && echo hello > $out" ]; input = builtins.storePath %s; }`, name, input)
}

// producing is a build that makes so many MiB that do not compress, and leaves the
// time when it was done on its builder.
func producing(name string, mebibytes int) string {
	return fmt.Sprintf(`derivation { name = %q; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/usr/bin:/bin";
	args = [ "-c" "head -c %dM /dev/urandom > $out; date +%%s%%N > /tmp/done-%s" ]; }`, name, mebibytes, name)
}

// addRandom puts a file of so many MiB that do not compress into the store of a
// client.
func (s *site) addRandom(ctx context.Context, client *nixlab.Client, name string, mebibytes int) (path string, err error) {
	file := filepath.Join(s.shared, name)
	defer os.Remove(file)
	s.names++
	if err := writeRandom(file, uint64(s.names), mebibytes); err != nil {
		return "", err
	}
	path, err = client.Exec(ctx, "nix-store", "--add-fixed", "sha256", filepath.Join(nixlab.VolumePath, name))
	return strings.TrimSpace(path), err
}

func writeRandom(path string, seed uint64, mebibytes int) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	var key [32]byte
	key[0], key[1], key[2] = byte(seed), byte(seed>>8), byte(seed>>16)
	_, err = io.CopyN(file, rand.NewChaCha8(key), int64(mebibytes)<<20)
	return errors.Join(err, file.Close())
}

// collectGarbage removes what nothing holds from all stores, so that disks do not
// fill. Nothing that a later run needs is in them.
func (s *site) collectGarbage(ctx context.Context) error {
	_, err := s.client.Exec(ctx, "nix-store", "--gc")
	for _, b := range s.stations {
		_, failure := b.Exec(ctx, "nix-store", "--gc")
		err = errors.Join(err, failure)
	}
	return err
}

// lossyTransfer measures several uploads at the same time on a lossy line.
func (r *run) lossyTransfer(ctx context.Context, s *site) error {
	t, err := s.threeWays(ctx, lossy)
	if err != nil {
		return err
	}
	defer t.Close()
	for round := range r.rounds(lossy) {
		for _, w := range t.inRound(round) {
			if err := r.uploadMany(ctx, s, t.dispatcher, w); err != nil {
				return err
			}
		}
	}
	return r.addPeak(s, t.dispatcher)
}

// uploadMany takes builds at the same time that do nothing with their inputs.
func (r *run) uploadMany(ctx context.Context, s *site, d *dispatcher, w way) error {
	name := s.name("lossy")
	var builds []string
	for i := range lossyInputs {
		one := fmt.Sprintf("%s-%d", name, i)
		input, err := s.addRandom(ctx, s.client, one, r.options.mebibytes/lossyInputs)
		if err != nil {
			return err
		}
		builds = append(builds, "("+consuming(one, input)+")")
	}
	err := r.time(s, d, "lossy", w.name, func() (time.Duration, error) {
		return s.build(ctx, s.client, w, "["+strings.Join(builds, " ")+"]", transferLimit)
	})
	if err != nil {
		return err
	}
	return s.collectGarbage(ctx)
}

// addPeak notes the most memory that the dispatcher has had.
func (r *run) addPeak(s *site, d *dispatcher) error {
	peak, err := d.peakMemory()
	if err != nil {
		return err
	}
	r.add("transfer_rss", s, figures.Dispatcher, peak)
	return nil
}
