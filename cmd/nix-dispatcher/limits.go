// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"slices"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/dispatch"
)

// limits are the flags that bound builds and those who wait for them.
type limits struct {
	silence, build, wait duration
	log                  sizeLimit
	client, orphan       duration
}

// register adds the flags with their defaults.
func (l *limits) register(flags *flag.FlagSet) {
	l.client, l.orphan = duration(5*time.Minute), duration(2*time.Minute)
	flags.Var(&l.silence, "max-silent-time", "longest `time` that a build may say nothing; 0s for no limit")
	flags.Var(&l.build, "build-timeout", "longest `time` that a build may take on its builder; 0s for no limit")
	flags.Var(&l.log, "max-log-size", "most `bytes` of log that a build may write, with a suffix such as Mi; 0 for no limit")
	flags.Var(&l.wait, "wait-timeout", "longest `time` that a build may wait for a slot; 0s for no limit")
	flags.Var(&l.client, "client-timeout", "longest `time` to wait for a client that has stopped in the middle of an upload, or that keeps a slot")
	flags.Var(&l.orphan, "orphan-grace", "`time` for which a slot counts as taken after its builder fell silent, because the build may still run there")
}

func (l *limits) check() error {
	flags := map[string]duration{
		"--max-silent-time": l.silence, "--build-timeout": l.build, "--wait-timeout": l.wait, "--orphan-grace": l.orphan,
	}
	for _, name := range slices.Sorted(maps.Keys(flags)) {
		if flags[name] < 0 {
			return fmt.Errorf("%s must not be negative: 0s means none", name)
		}
	}
	if l.client <= 0 {
		return errors.New("--client-timeout must be positive")
	}
	return nil
}

// dispatchLimits returns the bounds that the flags ask for.
func (o options) dispatchLimits() dispatch.Limits {
	return dispatch.Limits{
		Locate:        time.Duration(o.locateTimeout),
		SpooledOutput: uint64(o.spooledOutput),
		Stall:         time.Duration(o.limits.client),
		Silence:       time.Duration(o.limits.silence),
		Duration:      time.Duration(o.limits.build),
		Log:           uint64(o.limits.log),
		OrphanGrace:   time.Duration(o.limits.orphan),
	}
}

// sizeLimit is a flag for a number of bytes that may be 0 for no limit.
type sizeLimit int64

// String implements flag.Value.
func (s *sizeLimit) String() string { return (*byteSize)(s).String() }

// Set implements flag.Value.
func (s *sizeLimit) Set(text string) error {
	if text == "0" {
		*s = 0
		return nil
	}
	return (*byteSize)(s).Set(text)
}
