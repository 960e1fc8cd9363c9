// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package e2e_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"regexp"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"nixbuilder.io/nix-builder-operator/internal/dispatch/statuspage"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// fetch reads what the dispatcher serves as what, by its log, below path.
func (d *dispatcher) fetch(what, path string) string {
	GinkgoHelper()
	served := regexp.MustCompile(`msg="Serving ` + what + `" address=(\S+)`).FindStringSubmatch(d.log.String())
	Expect(served).NotTo(BeNil(), "the dispatcher's log:\n%s", &d.log)
	response, err := http.Get("http://" + served[1] + path)
	Expect(err).NotTo(HaveOccurred())
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	Expect(err).NotTo(HaveOccurred())
	Expect(response.StatusCode).To(Equal(http.StatusOK), string(body))
	return string(body)
}

var _ = Describe("Watching a dispatcher", func() {
	It("shows which builds run where, which wait and why, and which builder was lost", func(ctx context.Context) {
		var builders []*nixlab.Builder
		var lines []string
		for _, name := range []string{"watched-b1", "watched-b2"} {
			b := newBuilder(ctx, nixlab.BuilderOptions{Name: name})
			builders, lines = append(builders, b), append(lines, b.MachinesLine(1))
		}
		d := newDispatcherWith([]string{"--status-address=127.0.0.1:0", "--metrics-address=127.0.0.1:0"}, lines...)
		status := func() (document statuspage.Document) {
			GinkgoHelper()
			Expect(json.Unmarshal([]byte(d.fetch("status page", "/status.json")), &document)).To(Succeed())
			return document
		}
		client := newClient(ctx, d, nixlab.ClientOptions{Name: "watched-c"})
		build := startBuild(ctx, client, nixlab.Sleeping("watched", 600))
		Eventually(func() int { return buildsRunning(builders...) }).WithTimeout(patience).Should(Equal(1))

		By("losing the builder that has the build")
		first, second := builders[0], builders[1]
		if buildsRunning(first) == 0 {
			first, second = second, first
		}
		first.Kill()
		Eventually(second.BuildsRunning).WithTimeout(patience).Should(Equal(1))
		waiting := startBuild(ctx, client, nixlab.Trivial("watched-too"))
		waiting.expectWaiting(first.IP())

		By("reading the status")
		Eventually(func(g Gomega) {
			now := status()
			g.Expect(now.Running).To(HaveLen(1))
			one := now.Running[0]
			g.Expect(one.Name).To(Equal("watched"))
			g.Expect(one.Derivation).To(MatchRegexp(`^/nix/store/.*-watched\.drv$`))
			g.Expect(one.Phase).To(Equal("Building"))
			g.Expect(one.Builder).To(Equal("machines/" + second.IP()))
			g.Expect(one.Lost).To(Equal([]string{"machines/" + first.IP()}))
			g.Expect(now.Waiting).To(HaveLen(1))
			g.Expect(now.Waiting[0].Name).To(Equal("watched-too"))
			g.Expect(now.Waiting[0].Position).To(Equal(1))
			g.Expect(now.Waiting[0].Reason).To(And(ContainSubstring("1/1 slots busy"), ContainSubstring(first.IP())))
			for _, b := range now.Builders {
				state := statuspage.StateHealthy
				if b.ID == "machines/"+first.IP() {
					state = statuspage.StateDown
				}
				g.Expect(b.State).To(Equal(state), b.ID)
			}
		}).WithTimeout(patience).Should(Succeed())
		Expect(d.fetch("status page", "/")).To(And(ContainSubstring("watched-too"), ContainSubstring("lost on machines/"+first.IP())))

		By("reading the metrics")
		metrics := d.fetch("metrics", "/metrics")
		for _, line := range []string{
			`nix_dispatcher_failovers_total{builder="machines/` + first.IP() + `",phase="Building"} 1`,
			`nix_dispatcher_builds_waiting{class="` + nixlab.System() + `"} 1`,
			`nix_dispatcher_builds{phase="Building"} 1`,
			`nix_dispatcher_builder_up{builder="machines/` + first.IP() + `"} 0`,
			`nix_dispatcher_builds_running{builder="machines/` + second.IP() + `"} 1`,
		} {
			Expect(metrics).To(ContainSubstring("\n" + line + "\n"))
		}
		Expect(metrics).To(MatchRegexp(`nix_dispatcher_builder_sent_bytes_total\{builder="machines/` + regexp.QuoteMeta(second.IP()) + `"\} [1-9]`))

		build.interrupt()
		waiting.expectSuccess()
		Eventually(func() int { return len(status().Running) + len(status().Waiting) }).WithTimeout(patience).Should(BeZero())
		Expect(d.fetch("metrics", "/metrics")).To(ContainSubstring(`nix_dispatcher_builds_total{builder="machines/` + second.IP() + `",class="` + nixlab.System() + `",result="Built"} 1`))
	}, SpecTimeout(specTimeout))
})
