// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package e2e_test

import (
	"context"
	"fmt"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// Machines that are listed as builders and answer something else.
var _ = Describe("Builders that talk garbage", func() {
	for when, says := range map[string][]string{
		"in place of a daemon": {"cat /dev/urandom", "yes", "sleep 600"},
		"in place of answers": {
			"sh -c 'nix-daemon --stdio | (head -c 100; cat /dev/urandom)'",
			"sh -c 'nix-daemon --stdio | (head -c 200; yes)'",
			"sh -c 'nix-daemon --stdio | head -c 150'",
		},
	} {
		It("cost no build and no memory: "+when, func(ctx context.Context) {
			var lines []string
			name := fmt.Sprintf("garbage-%d", len(says[2]))
			for i, command := range says {
				b := newBuilder(ctx, nixlab.BuilderOptions{Name: fmt.Sprintf("%s-b%d", name, i), SSHDConfig: "ForceCommand " + command})
				// So many slots that every build is placed there first.
				lines = append(lines, b.MachinesLine(16))
			}
			good := newBuilder(ctx, nixlab.BuilderOptions{Name: name + "-good"})
			d := newDispatcherWith([]string{"--connect-timeout=2s"}, append(lines, good.MachinesLine(1))...)
			client := newClient(ctx, d, nixlab.ClientOptions{Name: name + "-c"})
			before := d.highWater()
			mustBuild(ctx, client, nixlab.Parallel(name, 3, func(name string) string { return nixlab.WithInputs(name, 5) }))
			grown := d.highWater() - before
			AddReportEntry("memory", fmt.Sprintf("grew by %d MiB", grown>>20))
			Expect(grown).To(BeNumerically("<", 64<<20))
			Expect(mustList(good)).To(ContainElement(MatchRegexp(built(name + "-2"))))
		}, SpecTimeout(specTimeout))
	}
})
