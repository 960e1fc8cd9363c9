// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package e2e_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// A terminal that takes nothing, a machine that hangs and a daemon that does are noticed
// after half a minute. Other specs fill the time.
var _ = Describe("While a terminal takes nothing and a machine hangs", Ordered, ContinueOnFailure, func() {
	const lines = 80_000
	var (
		builder, hanging *nixlab.Builder
		d                *dispatcher
		client           *nixlab.Client
		frozen, delayed  *running
		stopped          *nixlab.Builder
		floods           []flood
		began            time.Time
		before           int
	)
	BeforeAll(func(ctx context.Context) {
		builder = newBuilder(ctx, nixlab.BuilderOptions{Name: "flood-b"})
		hanging = newBuilder(ctx, nixlab.BuilderOptions{Name: "flood-hanging"})
		d = newDispatcherWith([]string{"--orphan-grace=5s"}, hanging.MachinesLine(1))
		client = newClient(ctx, d, nixlab.ClientOptions{Name: "flood-c"})
		// Not the node's context: both go on.
		lasting := context.WithoutCancel(ctx)
		frozen = startBuild(lasting, client, nixlab.Gated("frozen", "/tmp/gate-frozen"))
		Eventually(frozen.output.String).WithTimeout(patience).Should(ContainSubstring("at the gate"))
		d.useList(hanging.MachinesLine(1) + "\n" + builder.MachinesLine(len(nixlab.Versions())+1) + "\n")
		Expect(builder.WriteFile("/tmp/gate-frozen", "", 0o644)).To(Succeed())
		Expect(hanging.StopProcesses()).To(Succeed())
		began = time.Now()
		for _, version := range nixlab.Versions() {
			c := newClient(ctx, d, nixlab.ClientOptions{Name: "flood-c" + slug(version), Version: version})
			floods = append(floods, startFlood(lasting, c, "flood-"+slug(version), lines))
		}
		Eventually(func() int { return buildsRunning(builder) }).WithTimeout(patience).Should(Equal(len(floods)))
		d.forgetHighWater()
		before = d.highWater()
		stopped, delayed = stoppedDaemon(ctx)
	}, NodeTimeout(specTimeout))

	It("other builds go on as ever", func(ctx context.Context) {
		for i := range 3 {
			start := time.Now()
			mustBuild(ctx, client, nixlab.Trivial(fmt.Sprintf("beside-flood-%d", i)))
			Expect(time.Since(start)).To(BeNumerically("<", 10*time.Second))
		}
		Expect(buildsRunning(builder)).To(Equal(len(floods)), "the floods are over too early")
	}, SpecTimeout(specTimeout))

	Describe("the limits of a build", Ordered, describeLimits)
	Describe("a client that leaves at any moment", Ordered, describeLeaving)

	It("floods give their slots back and take no memory", func(context.Context) {
		Eventually(func() int { return buildsRunning(builder) }).WithTimeout(2*time.Minute).Should(BeZero(), "a flood keeps its slot")
		grown := d.highWater() - before
		AddReportEntry("floods", fmt.Sprintf("their slots were free after %v at most; memory grew by %d MiB", time.Since(began), grown>>20))
		Expect(grown).To(BeNumerically("<", 32<<20))
		// The terminals go on, and their users hear what is missing.
		for _, f := range floods {
			seen, err := io.ReadAll(f.terminal)
			Expect(err).NotTo(HaveOccurred())
			Expect(f.wait()).To(Succeed(), "%s", seen[max(0, len(seen)-2000):])
			missing := regexp.MustCompile(`(\d+) lines of the log are missing`).FindAllStringSubmatch(string(seen), -1)
			Expect(missing).NotTo(BeEmpty(), "nothing tells what is missing")
			total := strings.Count(string(seen), "flood: ")
			for _, m := range missing {
				n, err := strconv.Atoi(m[1])
				Expect(err).NotTo(HaveOccurred())
				total += n
			}
			Expect(total).To(Equal(lines), "lines shown and missing")
		}
	}, SpecTimeout(specTimeout))

	It("builds for a daemon that hangs are done elsewhere", func(context.Context) {
		delayed.expectSuccess()
		Expect(delayed.output.String()).To(MatchRegexp(stopped.IP() + " lost .*: rebuilding on"))
		Expect(stopped.ContinueDaemon()).To(Succeed())
	}, SpecTimeout(specTimeout))

	It("the build on the machine that hangs is done elsewhere", func(context.Context) {
		frozen.expectSuccess()
		AddReportEntry("hanging machine", fmt.Sprintf("its build was done elsewhere after %v at most", time.Since(began)))
		Expect(frozen.output.String()).To(MatchRegexp(hanging.IP() + " lost .*: rebuilding on .*" + builder.IP()))
		Expect(hanging.ContinueProcesses()).To(Succeed())
	}, SpecTimeout(specTimeout))
})

// stoppedDaemon starts builds on two builders, on one of which nix-daemon hangs while
// sshd goes on. Both have been used before, and have sessions ready.
func stoppedDaemon(ctx context.Context) (*nixlab.Builder, *running) {
	GinkgoHelper()
	stopped := newBuilder(ctx, nixlab.BuilderOptions{Name: "stopped-b"})
	other := newBuilder(ctx, nixlab.BuilderOptions{Name: "stopped-other"})
	d := newDispatcher(stopped.MachinesLine(4), other.MachinesLine(4))
	client := newClient(ctx, d, nixlab.ClientOptions{Name: "stopped-c"})
	mustBuild(ctx, client, nixlab.Parallel("before-stop", 6, func(name string) string { return nixlab.Sleeping(name, 0.2) }))
	Expect(stopped.StopDaemon()).To(Succeed())
	return stopped, startBuild(context.WithoutCancel(ctx), client, nixlab.Parallel("after-stop", 6, func(name string) string { return nixlab.WithInputs(name, 2) }))
}

// flood is a build whose log nobody reads.
type flood struct {
	// terminal is what its nix-build writes to.
	terminal *os.File
	// wait waits for the end of nix-build.
	wait func() error
}

// startFlood builds something that writes so many lines, on a terminal that shows
// nothing until it is read.
func startFlood(ctx context.Context, client *nixlab.Client, name string, lines int) flood {
	GinkgoHelper()
	commands := fmt.Sprintf("yes 'flood: 0123456789 0123456789 0123456789 0123456789' | head -n %d; echo > $out", lines)
	command, err := client.NixCommand(ctx, "nix-build", "--no-out-link", "--expr", nixlab.Commands(name, commands))
	Expect(err).NotTo(HaveOccurred())
	terminal, write, err := os.Pipe()
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(terminal.Close)
	command.Stderr = write
	Expect(command.Start()).To(Succeed())
	Expect(write.Close()).To(Succeed())
	return flood{terminal, command.Wait}
}
