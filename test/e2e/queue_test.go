// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package e2e_test

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"nixbuilder.io/nix-builder-operator/test/captured"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

var _ = Describe("Waiting", func() {
	It("waits with reasons while every builder is down, and builds once one is up", func(ctx context.Context) {
		first := newBuilder(ctx, nixlab.BuilderOptions{Name: "wait-b1", Version: nixlab.Nix226})
		second := newBuilder(ctx, nixlab.BuilderOptions{Name: "wait-b2", Version: nixlab.Nix28})
		first.Kill()
		second.Kill()
		d := newDispatcher(first.MachinesLine(1), second.MachinesLine(1))
		for _, version := range nixlab.Versions() {
			client := newClient(ctx, d, nixlab.ClientOptions{Name: "wait-c" + slug(version), Version: version})
			build := startBuild(ctx, client, nixlab.Trivial("waited-"+slug(version)))
			build.expectWaiting(nixlab.System(), first.IP())
			Expect(first.Restart(ctx)).To(Succeed())
			build.expectSuccess()
			first.Kill()
		}
	}, SpecTimeout(specTimeout))

	It("waits for the only builder with a feature", func(ctx context.Context) {
		plain := newBuilder(ctx, nixlab.BuilderOptions{Name: "kvm-b1"})
		kvm := newBuilder(ctx, nixlab.BuilderOptions{Name: "kvm-b2", Features: []string{"kvm"}})
		kvm.Kill()
		d := newDispatcher(plain.MachinesLine(1), kvm.MachinesLine(1))
		client := newClient(ctx, d, nixlab.ClientOptions{Name: "kvm-c"})

		build := startBuild(ctx, client, nixlab.NeedingFeature("with-kvm", "kvm"))
		build.expectWaiting("kvm")
		mustBuild(ctx, client, nixlab.Trivial("without-kvm"))
		Expect(build.ended()).To(BeFalse(), "the kvm build ended without a builder for it:\n%s", &build.output)

		Expect(kvm.Restart(ctx)).To(Succeed())
		build.expectSuccess()
		Expect(kvm.StorePaths()).To(ContainElement(MatchRegexp(built("with-kvm"))))
	}, SpecTimeout(specTimeout))

	It("takes up builders that are added to the file", func(ctx context.Context) {
		down := newBuilder(ctx, nixlab.BuilderOptions{Name: "added-b1"})
		down.Kill()
		d := newDispatcher(down.MachinesLine(1))
		client := newClient(ctx, d, nixlab.ClientOptions{Name: "added-c"})
		build := startBuild(ctx, client, nixlab.Trivial("added"))
		build.expectWaiting(down.IP())
		added := newBuilder(ctx, nixlab.BuilderOptions{Name: "added-b2"})
		d.setMachines(down.MachinesLine(1), added.MachinesLine(1))
		build.expectSuccess()
	}, SpecTimeout(specTimeout))

	It("gives the place up when the client goes away", func(ctx context.Context) {
		builder := newBuilder(ctx, nixlab.BuilderOptions{Name: "gone-b"})
		d := newDispatcher(builder.MachinesLine(1))
		client := newClient(ctx, d, nixlab.ClientOptions{Name: "gone-c"})
		build := startBuild(ctx, client, nixlab.Sleeping("gone", 600))
		Eventually(builder.BuildsRunning).WithTimeout(patience).Should(Equal(1))
		build.interrupt()
		Eventually(builder.BuildsRunning).WithTimeout(patience).Should(BeZero(), "the build goes on without its client")
		mustBuild(ctx, client, nixlab.Trivial("after-gone"))
	}, SpecTimeout(specTimeout))
})

var _ = Describe("Losing the dispatcher", func() {
	for _, version := range nixlab.Versions() {
		It("tells a client with Nix "+string(version)+" why its build has ended", func(ctx context.Context) {
			builder := newBuilder(ctx, nixlab.BuilderOptions{Name: "lost-b" + slug(version)})
			d := newDispatcher(builder.MachinesLine(1))
			client := newClient(ctx, d, nixlab.ClientOptions{Name: "lost-c" + slug(version), Version: version})
			build := startBuild(ctx, client, nixlab.Sleeping("lost-"+slug(version), 600))
			Eventually(build.output.String).WithTimeout(patience).Should(MatchRegexp(`(?m)^(.*> )?building on .*/`))
			Eventually(builder.BuildsRunning).WithTimeout(patience).Should(Equal(1))
			d.kill()
			build.expectFailure("nix-dispatch-connect: the dispatcher on "+nixlab.VolumePath, "ended the connection")
			again := startBuild(ctx, client, nixlab.Trivial("refused-"+slug(version)))
			again.expectFailure("nix-dispatch-connect: nobody listens on")
		}, SpecTimeout(specTimeout))
	}

	It("tells every client that its build was cut short by the end of the dispatcher", func(ctx context.Context) {
		builder := newBuilder(ctx, nixlab.BuilderOptions{Name: "cut-b"})
		d := newDispatcher(builder.MachinesLine(4))
		var builds []*running
		for _, version := range nixlab.Versions() {
			client := newClient(ctx, d, nixlab.ClientOptions{Name: "cut-c" + slug(version), Version: version})
			builds = append(builds, startBuild(ctx, client, nixlab.Sleeping("cut-"+slug(version), 600)))
		}
		Eventually(builder.BuildsRunning).WithTimeout(patience).Should(Equal(len(builds)))
		d.stop()
		for _, build := range builds {
			build.expectFailure("the dispatcher was stopped while the build ran")
			GinkgoWriter.Println(build.output.String())
		}
	}, SpecTimeout(specTimeout))
})

var _ = Describe("Slots", func() {
	It("runs no more builds on a builder than it has slots", func(ctx context.Context) {
		builder := newBuilder(ctx, nixlab.BuilderOptions{Name: "slots-b"})
		d := newDispatcher(builder.MachinesLine(2))
		client := newClient(ctx, d, nixlab.ClientOptions{Name: "slots-c"})
		build := startBuild(ctx, client, nixlab.Parallel("slots", 6, func(name string) string { return nixlab.Sleeping(name, 0.5) }))
		most := 0
		Eventually(func() bool {
			running, err := builder.BuildsRunning()
			Expect(err).NotTo(HaveOccurred())
			most = max(most, running)
			return build.ended()
		}).WithTimeout(specTimeout).WithPolling(100 * time.Millisecond).Should(BeTrue())
		build.expectSuccess()
		Expect(most).To(Equal(2))
	}, SpecTimeout(specTimeout))
})

var _ = Describe("Uploads", Serial, func() {
	It("run in parallel: three take about as long as one", func(ctx context.Context) {
		const (
			size = 6 << 20
			rate = 1 << 20
		)
		var lines []string
		for i := range 3 {
			builder := newBuilder(ctx, nixlab.BuilderOptions{Name: fmt.Sprintf("upload-b%d", i)})
			link, err := lab.NewLink(builder.Address())
			Expect(err).NotTo(HaveOccurred())
			DeferCleanup(link.Close)
			link.SetUploadRate(rate)
			lines = append(lines, builder.MachinesLineAt(link.Address(), 1))
		}
		client := newClient(ctx, newDispatcher(lines...), nixlab.ClientOptions{Name: "upload-c"})
		large := func(name string) string { return nixlab.WithLargeInput(name, size) }
		measure := func(expression string) time.Duration {
			// Evaluation makes the inputs and is no part of the upload.
			derivations, err := client.Run(ctx, "nix-instantiate", "--expr", expression)
			Expect(err).NotTo(HaveOccurred())
			began := time.Now()
			result, err := client.NixBuild(ctx, strings.Fields(derivations.Stdout)...)
			Expect(err).NotTo(HaveOccurred())
			Expect(result.Status).To(BeZero(), "standard error of nix-build:\n%s", result.Stderr)
			return time.Since(began)
		}
		one := measure(nixlab.Parallel("upload-one", 1, large))
		three := measure(nixlab.Parallel("upload-three", 3, large))
		AddReportEntry("uploads", fmt.Sprintf("one %v, three at once %v: %.2f times as long", one, three, three.Seconds()/one.Seconds()))
		Expect(one).To(BeNumerically(">", size/rate*time.Second), "the line is not slow")
		// On a quiet machine it is below 1.3.
		Expect(three).To(BeNumerically("<", 2*one))
	}, SpecTimeout(specTimeout))
})

// running is a nix-build that goes on beside the test.
type running struct {
	command *exec.Cmd
	output  captured.Text
	done    chan struct{}
	err     error // valid once done is closed
}

func startBuild(ctx context.Context, client *nixlab.Client, expression string) *running {
	GinkgoHelper()
	command, err := client.NixCommand(ctx, "nix-build", "--no-out-link", "--expr", expression)
	Expect(err).NotTo(HaveOccurred())
	r := &running{command: command, done: make(chan struct{})}
	command.Stdout, command.Stderr = &r.output, &r.output
	Expect(command.Start()).To(Succeed())
	go func() {
		defer close(r.done)
		r.err = command.Wait()
	}()
	return r
}

func (r *running) ended() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// expectWaiting waits for a line that says that the build waits, with the
// words in it or in a later one.
func (r *running) expectWaiting(words ...string) {
	GinkgoHelper()
	for _, word := range append([]string{"waiting for"}, words...) {
		Eventually(r.output.String).WithTimeout(patience).Should(ContainSubstring(word))
	}
	Expect(r.ended()).To(BeFalse(), "nix-build did not wait:\n%s", &r.output)
}

func (r *running) expectSuccess() {
	GinkgoHelper()
	Eventually(r.done).WithTimeout(specTimeout).Should(BeClosed(), "nix-build does not end:\n%s", &r.output)
	Expect(r.err).NotTo(HaveOccurred(), "output of nix-build:\n%s", &r.output)
}

// expectFailure waits for the end of a build that cannot succeed.
func (r *running) expectFailure(words ...string) {
	GinkgoHelper()
	Eventually(r.done).WithTimeout(patience).Should(BeClosed(), "nix-build does not end:\n%s", &r.output)
	Expect(r.err).To(HaveOccurred())
	for _, word := range words {
		Expect(r.output.String()).To(ContainSubstring(word))
	}
	Expect(r.output.String()).NotTo(ContainSubstring("@nix"))
}

// interrupt is Ctrl-C.
func (r *running) interrupt() {
	GinkgoHelper()
	Expect(syscall.Kill(-r.command.Process.Pid, syscall.SIGINT)).To(Succeed())
	Eventually(r.done).WithTimeout(patience).Should(BeClosed())
}
