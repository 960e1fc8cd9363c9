// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package e2e_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// describeLeaving is about clients that go away: while they upload, before the build
// begins, in it, and while outputs are asked for behind it.
func describeLeaving() {
	It("leaves nothing running on any builder, and no slot taken", func(ctx context.Context) {
		var (
			builders []*nixlab.Builder
			clients  []*nixlab.Client
			lines    []string
		)
		for _, version := range nixlab.Versions() {
			b := newBuilder(ctx, nixlab.BuilderOptions{Name: "leave-b" + slug(version), Version: version})
			builders, lines = append(builders, b), append(lines, b.MachinesLine(4))
		}
		d := newDispatcher(lines...)
		for _, version := range nixlab.Versions() {
			clients = append(clients, newClient(ctx, d, nixlab.ClientOptions{Name: "leave-c" + slug(version), Version: version}))
		}
		random := rand.New(rand.NewPCG(uint64(GinkgoRandomSeed()), 1))
		for round := range 4 {
			var builds []*running
			for i := range 12 {
				name := fmt.Sprintf("leave-%d-%d", round, i)
				builds = append(builds, startBuild(ctx, clients[i%len(clients)], nixlab.Commands(name, "echo started; sleep 600")))
			}
			for i, build := range builds {
				pause(ctx, time.Duration(random.IntN(150))*time.Millisecond)
				signal := syscall.SIGINT
				if i%2 == 0 {
					signal = syscall.SIGKILL
				}
				_ = syscall.Kill(-build.command.Process.Pid, signal) // it may not have begun
			}
			// A Nix that has only just begun may miss an interrupt.
			for _, client := range clients {
				_, err := client.Exec(ctx, "sh", "-c", "pkill -KILL '^(nix|build-remote)' || true")
				Expect(err).NotTo(HaveOccurred())
			}
			for _, build := range builds {
				Eventually(build.done).WithTimeout(patience).Should(BeClosed(), "nix-build does not end:\n%s", &build.output)
			}
			Eventually(func() int { return buildsRunning(builders...) }).WithTimeout(patience).Should(BeZero(), "builds go on without their client")
		}
		build := startBuild(ctx, clients[0], nixlab.Parallel("after-leaving", 12, func(name string) string {
			return nixlab.Commands(name, "until [ -e /tmp/gate-left ]; do sleep 0.05; done; echo > $out")
		}))
		Eventually(func() int { return buildsRunning(builders...) }).WithTimeout(patience).Should(Equal(12))
		for _, b := range builders {
			Expect(b.WriteFile("/tmp/gate-left", "", 0o644)).To(Succeed())
		}
		build.expectSuccess()
	}, SpecTimeout(specTimeout))
}

// pause waits for nothing but time.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
