// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package e2e_test

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

var _ = Describe("Equal builds of several clients", Ordered, func() {
	var (
		pair    []*nixlab.Builder
		clients []*nixlab.Client
	)
	BeforeAll(func(ctx context.Context) {
		var lines []string
		for i := range 2 {
			b := newBuilder(ctx, nixlab.BuilderOptions{Name: fmt.Sprintf("equal-b%d", i)})
			pair, lines = append(pair, b), append(lines, b.MachinesLine(4))
		}
		d := newDispatcher(lines...)
		for _, version := range nixlab.Versions() {
			clients = append(clients, newClient(ctx, d, nixlab.ClientOptions{Name: "equal-c" + slug(version), Version: version}))
		}
	}, NodeTimeout(specTimeout))

	// together starts the same gated build on every client.
	together := func(ctx context.Context, name string) (builds []*running, gate string) {
		GinkgoHelper()
		gate = "/tmp/gate-" + name
		for _, client := range clients {
			build := startBuild(ctx, client, gatedOnce(name, gate))
			Eventually(build.output.String).WithTimeout(patience).Should(ContainSubstring("at the gate"), "this client does not see the log so far")
			builds = append(builds, build)
		}
		Expect(buildsRunning(pair...)).To(Equal(1), "equal builds run more than once")
		return builds, gate
	}

	It("run once, with the whole log for everybody", func(ctx context.Context) {
		builds, gate := together(ctx, "equal")
		for _, b := range pair {
			Expect(b.WriteFile(gate, "", 0o644)).To(Succeed())
		}
		for _, build := range builds {
			build.expectSuccess()
			Expect(build.output.String()).To(And(ContainSubstring("at the gate"), ContainSubstring("through the gate")))
		}
		Expect(runs(ctx, "equal", pair...)).To(Equal(1))
	}, SpecTimeout(specTimeout))

	It("go on while one client is left, and end with the last", func(ctx context.Context) {
		builds, _ := together(ctx, "left")
		builds[0].interrupt()
		Expect(syscall.Kill(-builds[1].command.Process.Pid, syscall.SIGKILL)).To(Succeed())
		Eventually(builds[1].done).WithTimeout(patience).Should(BeClosed())
		Consistently(func() int { return buildsRunning(pair...) }).WithTimeout(time.Second).WithPolling(100*time.Millisecond).Should(Equal(1), "the build ended although a client waits for it")
		builds[2].interrupt()
		Eventually(func() int { return buildsRunning(pair...) }).WithTimeout(patience).Should(BeZero(), "the build goes on for nobody")
		Expect(runs(ctx, "left", pair...)).To(Equal(1))
	}, SpecTimeout(specTimeout))
})

var _ = Describe("A client with many builds", func() {
	It("does not keep one with two from its turn", func(ctx context.Context) {
		builder := newBuilder(ctx, nixlab.BuilderOptions{Name: "fair-b"})
		d := newDispatcher(builder.MachinesLine(2))
		many := newClient(ctx, d, nixlab.ClientOptions{Name: "fair-many", NixConf: "max-jobs = 0"})
		few := newClient(ctx, d, nixlab.ClientOptions{Name: "fair-few"})
		sleeping := func(name string) string { return nixlab.Sleeping(name, 0.4) }
		first := startBuild(ctx, many, nixlab.Parallel("many", 16, sleeping))
		Eventually(func() int { return buildsRunning(builder) }).WithTimeout(patience).Should(Equal(2))
		began := time.Now()
		second := startBuild(ctx, few, nixlab.Parallel("few", 2, sleeping))
		second.expectSuccess()
		took := time.Since(began)
		Expect(first.ended()).To(BeFalse(), "the client with many builds was served first")
		left := 16 - strings.Count(strings.Join(mustList(builder), "\n"), "-many-")
		AddReportEntry("fairness", fmt.Sprintf("two builds took %v; %d of the other client's 16 were left", took, left))
		Expect(left).To(BeNumerically(">=", 8), "two builds had to wait for %d of another client's", 16-left)
		first.expectSuccess()
	}, SpecTimeout(specTimeout))
})

// gatedOnce is a build that leaves a mark each time it runs, and then waits until the
// file is there on its builder.
func gatedOnce(name, gate string) string {
	return nixlab.Commands(name, fmt.Sprintf("%s\necho at the gate; until [ -e %s ]; do sleep 0.05; done; echo through the gate; echo > $out", mark(name), gate))
}

// mark are the commands by which a build leaves a mark that it has run.
func mark(name string) string { return fmt.Sprintf("mktemp /tmp/ran-%s.XXXXXX >/dev/null", name) }

// runs counts the marks on builders.
func runs(ctx context.Context, name string, builders ...*nixlab.Builder) int {
	GinkgoHelper()
	all := 0
	for _, b := range builders {
		list, err := b.Exec(ctx, "sh", "-c", "ls /tmp | grep '^ran-"+name+"[.]' || true")
		Expect(err).NotTo(HaveOccurred())
		all += strings.Count(list, "\n")
	}
	return all
}

// buildsRunning counts the builds on builders, by their processes.
func buildsRunning(builders ...*nixlab.Builder) int {
	GinkgoHelper()
	all := 0
	for _, b := range builders {
		running, err := b.BuildsRunning()
		Expect(err).NotTo(HaveOccurred())
		all += running
	}
	return all
}

func mustList(b *nixlab.Builder) []string {
	GinkgoHelper()
	paths, err := b.StorePaths()
	Expect(err).NotTo(HaveOccurred())
	return paths
}
