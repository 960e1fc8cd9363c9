// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package e2e_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

var _ = Describe("Ending the dispatcher", func() {
	It("lets running builds finish, turns others away, and then ends well", func(ctx context.Context) {
		builder := newBuilder(ctx, nixlab.BuilderOptions{Name: "drain-b"})
		d := newDispatcherWith([]string{"--shutdown-timeout=60s"}, builder.MachinesLine(1))
		client := newClient(ctx, d, nixlab.ClientOptions{Name: "drain-c"})
		build := startBuild(ctx, client, nixlab.Gated("drained", "/tmp/gate-drained"))
		Eventually(build.output.String).WithTimeout(patience).Should(ContainSubstring("at the gate"))
		waiting := startBuild(ctx, client, nixlab.Trivial("turned-away"))
		waiting.expectWaiting("1/1 slots busy")
		Expect(d.command.Process.Signal(syscall.SIGTERM)).To(Succeed())
		waiting.expectFailure("the dispatcher is shutting down")
		// On the first client Nix would wait for the line of the build that runs.
		late := startBuild(ctx, newClient(ctx, d, nixlab.ClientOptions{Name: "drain-late"}), nixlab.Trivial("too-late"))
		late.expectFailure("nix-dispatch-connect")
		Expect(d.running()).To(BeTrue(), "the dispatcher did not wait for the build")
		Expect(builder.WriteFile("/tmp/gate-drained", "", 0o644)).To(Succeed())
		build.expectSuccess()
		Eventually(d.done).WithTimeout(patience).Should(BeClosed())
		Expect(d.command.ProcessState.ExitCode()).To(BeZero())
	}, SpecTimeout(specTimeout))
})

// A builder is taken out of use: its builds go on, the next ones run elsewhere.
var _ = Describe("A builder that is taken out of use", Ordered, func() {
	var (
		leaving, staying *nixlab.Builder
		d                *dispatcher
		client           *nixlab.Client
	)
	BeforeAll(func(ctx context.Context) {
		leaving = newBuilder(ctx, nixlab.BuilderOptions{Name: "leaving-b"})
		staying = newBuilder(ctx, nixlab.BuilderOptions{Name: "staying-b"})
		key, err := os.ReadFile(lab.ClientKeyFile())
		Expect(err).NotTo(HaveOccurred())
		keys := GinkgoT().TempDir()
		Expect(os.Mkdir(filepath.Join(keys, "lab"), 0o700)).To(Succeed())
		Expect(os.WriteFile(filepath.Join(keys, "lab", "ssh-privatekey"), key, 0o600)).To(Succeed())
		d = newDispatcherWith([]string{"--keys-dir=" + keys}, document(endpoint(leaving), endpoint(staying)))
		client = newClient(ctx, d, nixlab.ClientOptions{Name: "leaving-c"})
	}, NodeTimeout(specTimeout))

	for what, list := range map[string]func() string{
		"cordoned": func() string {
			cordoned := endpoint(leaving)
			cordoned.Cordon = &inventory.Cordon{Reason: "new disk"}
			return document(cordoned, endpoint(staying))
		},
		"cordoned for a while": func() string {
			cordoned := endpoint(leaving)
			until := time.Now().Add(time.Hour)
			cordoned.Cordon = &inventory.Cordon{Reason: "new disk", Until: &until}
			return document(cordoned, endpoint(staying))
		},
		"unhealthy": func() string {
			unhealthy := endpoint(leaving)
			unhealthy.State, unhealthy.Reason = inventory.StateUnhealthy, "DiskFull"
			return document(unhealthy, endpoint(staying))
		},
		"gone": func() string { return document(endpoint(staying)) },
	} {
		It("because it is "+what+" finishes what it runs and gets nothing new", func(ctx context.Context) {
			name := "leaving-" + what[:3] + what[len(what)-3:]
			gate := "/tmp/gate-" + name
			d.useList(document(endpoint(leaving)))
			build := startBuild(ctx, client, nixlab.Gated(name, gate))
			Eventually(build.output.String).WithTimeout(patience).Should(ContainSubstring("at the gate"))
			d.useList(list())
			before := len(mustList(leaving))
			other := name + "-elsewhere"
			mustBuild(ctx, client, nixlab.Parallel(other, 4, nixlab.Trivial))
			Expect(mustList(leaving)).To(HaveLen(before), "the builder got a new build")
			Expect(mustList(staying)).To(ContainElement(MatchRegexp(built(other + "-3"))))
			Expect(buildsRunning(leaving)).To(Equal(1))
			Expect(build.ended()).To(BeFalse())
			Expect(leaving.WriteFile(gate, "", 0o644)).To(Succeed())
			build.expectSuccess()
			Expect(build.output.String()).NotTo(ContainSubstring("rebuilding"))
		}, SpecTimeout(specTimeout))
	}
})

// useList replaces the list of builders and waits until the dispatcher has read it.
func (d *dispatcher) useList(text string) {
	GinkgoHelper()
	const read = "Read the list of builders"
	before := strings.Count(d.log.String(), read)
	d.setList(text)
	Eventually(func() int { return strings.Count(d.log.String(), read) }).WithTimeout(patience).Should(BeNumerically(">", before))
}

// endpoint is a builder as the operator lists it.
func endpoint(b *nixlab.Builder) inventory.Endpoint {
	return inventory.Endpoint{
		Builder: "lab", Name: b.Name(), Host: b.IP(), Port: b.Port(), User: nixlab.TrustedUser,
		HostKeys: []string{b.HostKey()}, Credentials: []string{"lab"},
		Systems: []string{nixlab.System()}, Slots: 4, SpeedFactor: 1, State: inventory.StateHealthy,
	}
}

// document is the operator's list of builders.
func document(endpoints ...inventory.Endpoint) string {
	GinkgoHelper()
	text, err := inventory.Encode(inventory.Document{SchemaVersion: inventory.SchemaVersion, Builders: endpoints})
	Expect(err).NotTo(HaveOccurred())
	return string(text)
}
