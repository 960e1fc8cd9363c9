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

// diskSpaceNote is what Nix adds to the error of a build that failed while the disk was
// full.
const diskSpaceNote = "may have been caused by lack of free disk space"

// complaints are words of operating systems about the machine itself. A daemon that
// answers with them could not do its part, whatever the derivation is.
var complaints = []string{
	"No space left on device",
	"Disk quota exceeded",
	"Read-only file system",
	"Input/output error",
	"Cannot allocate memory",
	"Too many open files",
}

// setback is a builder that did not finish a build which another may finish.
type setback struct {
	builder string
	phase   Phase
	// lost tells a builder that was lost from one that has failed the build.
	lost bool
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

// judge decides whether another builder may do better after an attempt on p:
//
//   - a builder that was lost is replaced, whatever it did;
//   - so is one that complains of itself instead of the build, such as of a full disk:
//     in an error, or as MiscFailure (9), which is how daemons report errors that are
//     not the build's. Other errors and MiscFailures would be the same elsewhere;
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
	var remote *daemon.RemoteError
	switch {
	case errors.As(err, &lost):
		back.builder, back.lost, back.brief = lost.Builder, true, lost.Brief()
		back.orphan = lost.Silent() && back.phase == PhaseBuilding
		return back
	case errors.As(err, &remote):
		back.brief = complaint(remote.Message)
	case err != nil:
	case result.Status == daemon.StatusMiscFailure:
		back.brief = complaint(result.ErrorMessage)
	case result.Status == daemon.StatusTransientFailure && strings.Contains(result.ErrorMessage, diskSpaceNote):
		back.brief = "lack of free disk space"
	case result.Status == daemon.StatusTransientFailure && !hasFixedOutput(j.request.Derivation):
		back.brief = "transient failure"
	}
	if back.brief == "" {
		return nil
	}
	if err == nil {
		back.err, back.result = errors.New(result.ErrorMessage), result
	}
	if p.bound || j.retries() >= maxRetries || !j.server.hasOther(j, p.builder) {
		return nil
	}
	return back
}

// complaint returns the words of an operating system in a text, or nothing.
func complaint(text string) string {
	for _, words := range complaints {
		if strings.Contains(text, words) {
			return strings.ToLower(words[:1]) + words[1:]
		}
	}
	return ""
}

// hasFixedOutput reports whether the content of an output is known before the build.
func hasFixedOutput(drv *daemon.BasicDerivation) bool {
	return slices.ContainsFunc(drv.Outputs, func(out daemon.DerivationOutput) bool { return out.Kind() == daemon.OutputFixed })
}

// retries counts the setbacks that were not losses.
func (j *job) retries() int {
	n := 0
	for _, s := range j.setbacks {
		if !s.lost {
			n++
		}
	}
	return n
}

// hasOther reports whether there is a usable builder, besides one, that has not failed
// the job's build.
func (s *Server) hasOther(j *job, besides string) bool {
	now := time.Now()
	for _, b := range s.opts.Builders.Builders() {
		if b.ID != besides && b.Slots > 0 && b.Usable(now) && b.Serves(j.need.Class) && !slices.Contains(j.need.Avoid, b.ID) {
			return true
		}
	}
	return false
}

// standing returns the failure that stands when the build is placed on p, or cannot be
// placed if p is nil; nil if there is none. Where a build has failed, as opposed to losing
// its builder, it is not tried again, even if no other builder is left.
func (j *job) standing(p *placement) *setback {
	n := len(j.setbacks)
	if n == 0 || j.ctx.Err() != nil {
		return nil
	}
	if last := &j.setbacks[n-1]; p == nil && !last.lost {
		return last
	}
	for i := range j.setbacks {
		if s := &j.setbacks[i]; p != nil && s.builder == p.builder && !s.lost {
			return s
		}
	}
	return nil
}

// settle ends the build with an earlier failure, instead of a try on p.
func (j *job) settle(p *placement, failed *setback) (*daemon.BuildResult, *delivery, error) {
	if p != nil {
		p.release()
	}
	if failed.result != nil {
		return j.conclude(failed.builder, failed.result, nil), nil, nil
	}
	return nil, nil, j.afterSetbacks(failed.err)
}

// giveUp returns how the build ends if it is not tried again after its last setback.
func (j *job) giveUp(p *placement, last setback) (*daemon.BuildResult, error) {
	switch {
	case p.bound:
		return nil, fmt.Errorf("%w; the build cannot move because the dispatcher's spool had no room for its inputs", last.err)
	case len(j.setbacks) < j.server.limits.Attempts:
		return nil, nil
	case last.result != nil:
		return j.conclude(last.builder, last.result, nil), nil
	}
	return nil, fmt.Errorf("gave up after losing %d builders: %s", len(j.setbacks), j.tried())
}

// tried names the builders that did not finish the build, and why.
func (j *job) tried() string {
	texts := make([]string, len(j.setbacks))
	for i, s := range j.setbacks {
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
	if len(j.setbacks) > 0 && j.setbacks[len(j.setbacks)-1].result != result {
		result.ErrorMessage += "\n(tried before: " + j.tried() + ")"
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
