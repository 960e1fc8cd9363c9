// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"context"
	"slices"
	"strings"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// A daemon compares what a build requires with its own system-features before it does
// anything else. So a canary that requires features shows which of them the daemon
// has, which the configuration seen by the ssh user does not: kvm is a default only
// for those who may open /dev/kvm, and a file of the user's may name any. Nothing that
// a feature stands for is used.
//
// There is no such question without a canary: a refused build leaves the same empty
// lock file in the store as one that fails.

// featureVerdict is what builds showed about a feature: True where one that requires it
// ran, False where the daemon refuses it for want of features, else Unknown.
type featureVerdict struct {
	feature string
	status  Status
	// offers are the features that the daemon says it has, as it says it.
	offers string
	// said is the whole message about it, where that is all that was kept.
	said string
}

// canaryFeatures lists what to require of builds.
func canaryFeatures(t *Target, offered []string) []string {
	if len(t.Features) > 0 {
		return t.Features
	}
	return offered
}

// demanding tells which features make Nix set up more for a build than others, so that
// it can fail for other reasons than want of the feature.
func demanding(feature string) bool {
	switch feature {
	case "uid-range", "recursive-nix", "ca-derivations", "impure-derivations":
		return true
	}
	return false
}

// buildFeatures finds out about features by builds for a system that is known to work:
// one for all that are ordinary, and if the daemon refuses that, one for each.
func buildFeatures(ctx context.Context, t *Target, conn *sshconn.Conn, system string, features []string) []featureVerdict {
	verdicts := make([]featureVerdict, len(features))
	ordinary := slices.DeleteFunc(slices.Clone(features), demanding)
	together := featureVerdict{status: StatusUnknown}
	if len(ordinary) > 1 {
		together = buildRequiring(ctx, t, conn, system, ordinary...)
	}
	for i, feature := range features {
		verdicts[i] = featureVerdict{feature: feature, status: StatusUnknown}
		switch {
		case demanding(feature), len(ordinary) == 1, together.status == StatusFalse:
			if ctx.Err() == nil {
				verdicts[i] = buildRequiring(ctx, t, conn, system, feature)
			}
		default:
			verdicts[i].status = together.status
		}
	}
	return verdicts
}

// buildRequiring is one build that requires features. The verdict is named after the
// first.
func buildRequiring(ctx context.Context, t *Target, conn *sshconn.Conn, system string, features ...string) featureVerdict {
	built := canaryBuild(ctx, t, conn, system, features...)
	verdict := featureVerdict{feature: features[0], status: StatusUnknown}
	switch {
	case built.status == StatusTrue:
		verdict.status = StatusTrue
	case built.status == StatusFalse && built.cause == causeSystem:
		// The system works, so it is refused for the features.
		verdict.status, verdict.offers = StatusFalse, built.offers
	}
	return verdict
}

// offeredFeatures picks from a refusal what the daemon has: the last set in braces,
// after "but I am a … with features" or "Available features:".
func offeredFeatures(message string) string {
	message = withoutColours(message)
	start, end := strings.LastIndex(message, "{"), strings.LastIndex(message, "}")
	if start < 0 || end < start {
		return ""
	}
	return strings.Join(names(strings.Split(message[start+1:end], ",")...), ", ")
}

// coversFeatures tells whether builds were tried with each of them.
func (c *canaries) coversFeatures(features []string) bool {
	return !slices.ContainsFunc(features, func(feature string) bool {
		return !slices.ContainsFunc(c.features, func(v featureVerdict) bool { return v.feature == feature })
	})
}

// updateFeatures takes in verdicts. Those that show nothing leave the earlier ones.
func (c *canaries) updateFeatures(verdicts []featureVerdict) {
	earlier := c.features
	c.features = verdicts
	for i, verdict := range verdicts {
		at := slices.IndexFunc(earlier, func(v featureVerdict) bool { return v.feature == verdict.feature })
		if verdict.status == StatusUnknown && at >= 0 {
			verdicts[i] = earlier[at]
		}
	}
}

// only forgets features that are not asked for any more: nobody declares them now, or
// the builder does not offer them.
func (c *canaries) only(features []string) {
	c.features = slices.DeleteFunc(slices.Clone(c.features), func(v featureVerdict) bool {
		return !slices.Contains(features, v.feature)
	})
}

// featuresWith lists features with a verdict.
func (c *canaries) featuresWith(status Status) []string {
	var found []string
	for _, verdict := range c.features {
		if verdict.status == status {
			found = append(found, verdict.feature)
		}
	}
	return found
}

// messageFeaturesRefuted tells which features the daemon refuses. It is also a part of
// what is said where systems are refuted, too.
func messageFeaturesRefuted(t *Target, refuted []string, offers string) string {
	return t.says("the Nix daemon refuses builds that require %s (it has: %s), so they are not sent there; add it to system-features in its nix.conf and restart nix-daemon, or correct spec.supportedFeatures or spec.mandatoryFeatures",
		strings.Join(refuted, ", "), sshconn.Printable(orNone(offers)))
}

func orNone(text string) string {
	if text == "" {
		return "none"
	}
	return text
}
