// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package e2e_test

import (
	"context"
	"fmt"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// describeLimits is about builds that go on for too long.
func describeLimits() {
	var (
		pair []*nixlab.Builder
		d    *dispatcher
	)
	BeforeAll(func(ctx context.Context) {
		var lines []string
		for i, version := range []nixlab.Version{nixlab.Nix28, nixlab.Newest} {
			b := newBuilder(ctx, nixlab.BuilderOptions{Name: fmt.Sprintf("limits-b%d", i), Version: version})
			pair, lines = append(pair, b), append(lines, b.MachinesLine(6))
		}
		d = newDispatcherWith([]string{"--max-silent-time=2s", "--build-timeout=4s", "--max-log-size=64Ki"}, lines...)
	}, NodeTimeout(specTimeout))

	// beyond is a build beyond each limit, and the flag that is to be named.
	beyond := map[string]struct {
		commands, flag string
		status         daemon.BuildStatus
	}{
		"silent":  {"echo begins; sleep 600", "--max-silent-time", daemon.StatusTimedOut},
		"endless": {"while :; do echo goes on; sleep 0.3; done", "--build-timeout", daemon.StatusTimedOut},
		"chatty":  {"while :; do echo 0123456789012345678901234567890123456789; done", "--max-log-size", daemon.StatusLogLimitExceeded},
	}

	It("end it with the limit's name, for every Nix", func(ctx context.Context) {
		builds := map[string]*running{}
		for _, version := range nixlab.Versions() {
			client := newClient(ctx, d, nixlab.ClientOptions{Name: "limits-c" + slug(version), Version: version})
			for what, tc := range beyond {
				builds[tc.flag+" "+string(version)] = startBuild(ctx, client, nixlab.Commands("limit-"+what+"-"+slug(version), tc.commands))
			}
		}
		for what, build := range builds {
			flag, _, _ := strings.Cut(what, " ")
			build.expectFailure(flag)
			Expect(build.output.String()).NotTo(ContainSubstring("rebuilding"), what)
		}
		Eventually(func() int { return buildsRunning(pair...) }).WithTimeout(patience).Should(BeZero(), "builds go on beyond their limit")
	}, SpecTimeout(specTimeout))

	It("end it with the status that Nix has for that", func(ctx context.Context) {
		for what, tc := range beyond {
			path, drv := forged("status-"+what, tc.commands)
			result, err := d.speak(ctx, 1).BuildDerivation(ctx, path, drv, daemon.BuildNormal, nil)
			Expect(err).NotTo(HaveOccurred())
			Expect(result.Status).To(Equal(tc.status), result.ErrorMessage)
			Expect(result.ErrorMessage).To(And(ContainSubstring(tc.flag), ContainSubstring("builder machines/")))
		}
		Eventually(func() int { return buildsRunning(pair...) }).WithTimeout(patience).Should(BeZero())
	}, SpecTimeout(specTimeout))

	It("do not count the time before it has a slot, unless the limit is for that", func(ctx context.Context) {
		builder := newBuilder(ctx, nixlab.BuilderOptions{Name: "queue-b"})
		d := newDispatcherWith([]string{"--max-silent-time=2s", "--wait-timeout=3s"}, builder.MachinesLine(1))
		client := newClient(ctx, d, nixlab.ClientOptions{Name: "queue-c"})
		busy := startBuild(ctx, client, nixlab.Commands("queue-busy", "for i in 1 2 3 4 5 6 7 8 9 10; do echo goes on; sleep 0.5; done; echo > $out"))
		Eventually(func() int { return buildsRunning(builder) }).WithTimeout(patience).Should(Equal(1))
		began := time.Now()
		waiting := startBuild(ctx, client, nixlab.Trivial("queue-waiting"))
		waiting.expectFailure("waited 3s", "--wait-timeout", "1/1 slots busy")
		Expect(time.Since(began)).To(BeNumerically(">=", 3*time.Second))
		busy.expectSuccess()
	}, SpecTimeout(specTimeout))
}
