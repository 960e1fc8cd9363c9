// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

const (
	// firstPause to maxPause bound the pauses between attempts to reconnect.
	firstPause = 250 * time.Millisecond
	maxPause   = 30 * time.Second
	// refusedPause is the shortest pause after a refused login. OpenSSH 9.8 and
	// later penalise an address for these, and with it everybody behind it.
	refusedPause    = 30 * time.Second
	maxRefusedPause = 5 * time.Minute
	// turnedAwayPause is the shortest pause after a builder has turned away every
	// connection of a series.
	turnedAwayPause = 2 * time.Second
)

// unreachable describes a builder of which no more is known.
const unreachable = "unreachable"

// redial connects again until it succeeds or the host is retired.
func (h *host) redial() {
	var of *outage
	for failures := 0; ; failures++ {
		h.mu.Lock()
		if h.outage == nil || h.retired {
			h.redialling = false
			h.mu.Unlock()
			return
		}
		if of != h.outage {
			of, failures = h.outage, 0
		}
		wait := pause(failures, h.outage.err)
		asleep := listedDown(h.endpoint)
		h.mu.Unlock()
		if !h.sleep(wait, asleep) {
			return
		}
		h.mu.Lock()
		if h.retired {
			h.mu.Unlock()
			return
		}
		d := h.dial()
		h.mu.Unlock()
		<-d.done
	}
}

// sleep pauses; while the builders file says that the builder is down there is
// nothing to try, so only a better file ends the pause. It reports false when the
// host is retired.
func (h *host) sleep(wait time.Duration, listedDown bool) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	due := timer.C
	if listedDown {
		due = nil
	}
	select {
	case <-due:
	case <-h.kick:
	case <-h.ctx.Done():
		return false
	}
	return true
}

// pause is the time to wait after so many failed attempts, with jitter, so that
// the dispatchers of a cluster do not come back all at once.
func pause(failures int, last error) time.Duration {
	first, limit := firstPause, maxPause
	switch {
	case refused(last):
		first, limit = refusedPause, maxRefusedPause
	case sshconn.KindOf(last) == sshconn.KindTurnedAway:
		first = turnedAwayPause
	}
	d := min(first<<min(failures, 16), limit)
	return d/2 + rand.N(d)
}

// refused reports whether trying again soon makes matters worse.
func refused(err error) bool {
	switch sshconn.KindOf(err) {
	case sshconn.KindAuthRefused, sshconn.KindAuthDropped:
		return true
	}
	return false
}

// describe says in a few words why a builder is down.
func describe(err error) string {
	if jump := atJumpHost(err); jump != nil {
		return describeJump(jump)
	}
	var notTrusted *NotTrustedError
	var version *daemon.VersionError
	var preamble *daemon.PreambleError
	switch kind := sshconn.KindOf(err); {
	case errors.As(err, &notTrusted):
		return "does not trust its user"
	case errors.As(err, &version):
		return "has a Nix that is too old"
	case errors.As(err, &preamble):
		return "prints text at login"
	case errors.Is(err, errKey):
		return "has no usable key"
	case kind == sshconn.KindRefused:
		return "refuses connections"
	case kind == sshconn.KindTurnedAway:
		return "turns connections away"
	case kind == sshconn.KindForwardRefused:
		return "is refused by its jump host"
	case kind == sshconn.KindAuthRefused:
		return "refuses the login"
	case errors.Is(err, errHostKey), kind == sshconn.KindHostKeyUnknown:
		return "has an unknown host key"
	case kind == sshconn.KindHostKeyChanged, kind == sshconn.KindHostKeyType:
		return "has another host key"
	case kind == sshconn.KindNameUnknown, kind == sshconn.KindNameLookup:
		return "has an unknown name"
	case errors.Is(err, errDaemon):
		return "has no working nix-daemon"
	case kind == sshconn.KindSilent, kind == sshconn.KindStalled, kind == sshconn.KindTimeout,
		errors.Is(err, errSilent), errors.Is(err, context.DeadlineExceeded):
		return "does not answer"
	}
	return unreachable
}
