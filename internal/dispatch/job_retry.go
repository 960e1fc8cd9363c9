// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/dispatch/fleet"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
)

// maxRetries is on how many other builders a build is tried again that has not lost its
// builder, but has failed there for a reason that may lie in the builder.
const maxRetries = 2

// firstRespite is how long a builder that complains of itself is left alone, which
// doubles each time. It is taken again only if no other is there until then.
const firstRespite = 5 * time.Second

// maxFailures is on how many builders a build may come to nothing because of what they
// say of themselves or of it. A respite comes between those that complain of themselves.
const maxFailures = 4

// patience bounds all setbacks as a multiple of the losses that are held against a build:
// a builder that was lost before the build has begun says little about it.
const patience = 4

var (
	// errRespite ends the wait for another builder than one that has had its respite.
	errRespite = errors.New("a builder that has failed may be tried again")
	// errNoOther ends the wait for another builder than those where the build has
	// failed.
	errNoOther = errors.New("no other builder is left")
)

// diskSpaceNote is what Nix adds to the error of a build that failed while the disk was
// full.
const diskSpaceNote = "may have been caused by lack of free disk space"

// complaints are words of operating systems, and of the database of Nix's store, about
// the machine itself. A daemon that answers with them could not do its part, whatever
// the derivation is.
var complaints = []string{
	"No space left on device",
	"Disk quota exceeded",
	"Read-only file system",
	"Input/output error",
	"Cannot allocate memory",
	"Too many open files",
	"database or disk is full",
	"disk I/O error",
}

// setback is a builder that did not finish a build which another may finish.
type setback struct {
	builder string
	phase   Phase
	// lost tells a builder that was lost from one that has failed the build.
	lost bool
	// until is when a builder that has complained of itself may have the build again;
	// zero where the build has failed for a reason that is not clearly the builder's.
	until time.Time
	// patient is set where it is worth waiting for another builder.
	patient bool
	// orphan is set where the build may still run: the builder was lost by silence
	// while it had the build.
	orphan bool
	// brief is the reason in a few words, err the whole of it.
	brief string
	err   error
	// result is how the build has ended there, if it has.
	result *daemon.BuildResult
}

// String completes "…: rebuilding on".
func (s setback) String() string {
	what := "failed"
	if s.lost {
		what = "lost"
	}
	return fmt.Sprintf("builder %s %s (%s)", s.builder, what, s.brief)
}

// judge decides whether another try may end better after an attempt on p:
//
//   - a builder that was lost is replaced, whatever it did;
//   - so is one that complains of itself instead of the build, such as of a full disk:
//     in an error, or as MiscFailure (9), which is how daemons report errors that are
//     not the build's. So is one that refuses the inputs, which says nothing of the
//     build. Other errors and MiscFailures would be the same elsewhere;
//   - TransientFailure (6) is what Nix calls every failure of a derivation with a fixed
//     output, so there it counts only with Nix's note about disk space;
//   - everything else is final.
//
// It returns nil if the outcome stands.
func (j *job) judge(p *placement, result *daemon.BuildResult, err error) *setback {
	if j.ctx.Err() != nil || asResult(err) != nil {
		return nil
	}
	back := &setback{builder: p.builder, phase: j.now.is(), err: err}
	var lost *fleet.LostError
	if errors.As(err, &lost) {
		back.builder, back.lost, back.brief = lost.Builder, true, lost.Brief()
		back.orphan = lost.Silent() && back.phase == PhaseBuilding
		return back
	}
	if err == nil {
		back.err, back.result = errors.New(result.ErrorMessage), result
	}
	switch back.brief = j.complaint(result, err); {
	case p.bound:
		return nil
	case back.brief != "":
		back.until, back.patient = time.Now().Add(firstRespite<<j.complaints(p.builder)), true
		return back
	case err != nil || result.Status != daemon.StatusTransientFailure || j.retries() >= maxRetries:
		return nil
	case strings.Contains(result.ErrorMessage, diskSpaceNote):
		back.brief, back.patient = "lack of free disk space", true
	case hasFixedOutput(j.request.Derivation):
		return nil
	default:
		back.brief = "transient failure"
	}
	if !j.hasOther(p.builder, back.patient) {
		return nil
	}
	return back
}

// complaint returns the words of an operating system in what the daemon says of itself,
// or nothing.
func (j *job) complaint(result *daemon.BuildResult, err error) string {
	text := ""
	var remote *daemon.RemoteError
	switch {
	case errors.As(err, &remote):
		text = remote.Message
	case err == nil && result.Status == daemon.StatusMiscFailure:
		text = result.ErrorMessage
	}
	for _, words := range complaints {
		if strings.Contains(text, words) {
			return strings.ToLower(words[:1]) + words[1:]
		}
	}
	if remote != nil && j.now.is() == PhaseUploading {
		return "it refuses the inputs"
	}
	return ""
}

// complaints counts how often a builder has complained of itself.
func (j *job) complaints(builder string) int {
	n := 0
	for _, s := range j.setbacks {
		if s.builder == builder && !s.until.IsZero() {
			n++
		}
	}
	return n
}

// excluded returns the builders that must not have the build now, and when that
// changes, if it does.
func (j *job) excluded() (ids []string, until time.Time) {
	now := time.Now()
	for _, s := range j.setbacks {
		switch {
		case s.lost:
		case s.until.IsZero():
			ids = append(ids, s.builder)
		case s.until.After(now):
			ids = append(ids, s.builder)
			if until.IsZero() || s.until.Before(until) {
				until = s.until
			}
		}
	}
	return ids, until
}

// hasFixedOutput reports whether the content of an output is known before the build.
func hasFixedOutput(drv *daemon.BasicDerivation) bool {
	return slices.ContainsFunc(drv.Outputs, func(out daemon.DerivationOutput) bool { return out.Kind() == daemon.OutputFixed })
}

// retries counts the failures after which the build was tried elsewhere although they
// need not be the builder's.
func (j *job) retries() int {
	n := 0
	for _, s := range j.setbacks {
		if !s.lost && s.until.IsZero() {
			n++
		}
	}
	return n
}

// hasOther reports whether there is a builder, besides one, that has not lost or failed
// the build: one that is usable now or, with patience, any.
func (j *job) hasOther(besides string, patient bool) bool {
	now := time.Now()
	for _, b := range j.server.opts.Builders.Builders() {
		if b.ID != besides && b.Slots > 0 && (patient || b.Usable(now)) && b.Serves(j.need.Class) && !slices.Contains(j.need.Avoid, b.ID) {
			return true
		}
	}
	return false
}

// lastFailure returns how the build has failed last, unless its builder was lost then.
func (j *job) lastFailure() *setback {
	if n := len(j.setbacks); n > 0 && !j.setbacks[n-1].lost {
		return &j.setbacks[n-1]
	}
	return nil
}

// unplaced returns how the build ends that has no builder because of err: after a failure
// that was to be tried elsewhere, as it has failed.
func (j *job) unplaced(err error) (*daemon.BuildResult, error) {
	last := j.lastFailure()
	switch {
	case last == nil || j.ctx.Err() != nil:
		return nil, j.afterSetbacks(err)
	case last.result != nil:
		return j.conclude(last.builder, last.result, nil), nil
	}
	return nil, fmt.Errorf("%s", j.tried())
}

// giveUp returns how the build ends if it is not tried again after its last setback.
func (j *job) giveUp(p *placement, last setback) (*daemon.BuildResult, error) {
	losses, failures := 0, 0
	for _, s := range j.setbacks {
		switch {
		case !s.lost:
			failures++
		case s.phase != PhaseQueued && s.phase != PhaseUploading:
			losses++
		}
	}
	limit := j.server.limits.Losses
	switch {
	case p.bound:
		return nil, fmt.Errorf("%w; the build cannot move because the dispatcher's spool had no room for its inputs", last.err)
	case losses < limit && failures < maxFailures && len(j.setbacks) < patience*limit:
		return nil, nil
	case last.result != nil:
		return j.conclude(last.builder, last.result, nil), nil
	}
	return nil, fmt.Errorf("gave up after %d tries: %s", len(j.setbacks), j.tried())
}

// tried names the builders that did not finish the build, and why.
func (j *job) tried() string { return describe(j.setbacks) }

func describe(setbacks []setback) string {
	texts := make([]string, len(setbacks))
	for i, s := range setbacks {
		texts[i] = s.err.Error()
		if !strings.Contains(texts[i], s.builder) {
			texts[i] = fmt.Sprintf("builder %s: %s", s.builder, texts[i])
		}
	}
	return strings.Join(texts, "; ")
}

// afterSetbacks adds to an error which builders were tried before.
func (j *job) afterSetbacks(err error) error {
	if err == nil || len(j.setbacks) == 0 || errors.Is(err, daemon.ErrClientGone) {
		return err
	}
	return fmt.Errorf("%w; tried before: %s", err, j.tried())
}

// conclude returns the outcome of an attempt as its users get it: with the builders in
// the reason of a failure. It is nil if err is no result.
func (j *job) conclude(builder string, result *daemon.BuildResult, err error) *daemon.BuildResult {
	if limited := asResult(err); limited != nil {
		result = limited
	}
	if result == nil || result.Status.Success() {
		return result
	}
	result.ErrorMessage = located(result.ErrorMessage, builder)
	before := slices.DeleteFunc(slices.Clone(j.setbacks), func(s setback) bool { return s.result == result })
	if len(before) > 0 {
		result.ErrorMessage += "\n(tried before: " + describe(before) + ")"
	}
	return result
}

// located adds the builder to a message that does not name it. Below one of several
// lines, which ends with lines of the log or a command, it has a line of its own.
func located(message, builder string) string {
	if strings.Contains(message, builder) {
		return message
	}
	message = strings.TrimRight(message, "\n")
	separator := " "
	if strings.Contains(message, "\n") {
		separator = "\n"
	}
	return strings.TrimLeft(message+separator+"(on builder "+builder+")", " ")
}
