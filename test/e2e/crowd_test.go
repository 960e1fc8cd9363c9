// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package e2e_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// crowd is how many dispatchers come to a builder at the same moment. Its sshd, left
// with its defaults, drops connections at random from ten on that have not logged in
// (MaxStartups), and shuts out addresses that misbehave (PerSourcePenalties, since
// OpenSSH 9.8); all of the crowd have the same address.
const crowd = 30

// crowdDerivation is a derivation without inputs that differs for each client.
func crowdDerivation(number int, script string) (string, *daemon.BasicDerivation) {
	base := fmt.Sprintf("/nix/store/%032d-crowd", number)
	return base + ".drv", &daemon.BasicDerivation{
		Outputs:  []daemon.DerivationOutput{{Name: "out", Path: base}},
		Platform: nixlab.System(), Builder: "/bin/sh", Args: []string{"-c", script},
		Env: []daemon.EnvVar{{Name: "out", Value: base}, {Name: "name", Value: "crowd"}},
	}
}

var _ = Describe("A crowd of dispatchers", func() {
	It("gets every build done though all come at once", func(ctx context.Context) {
		builder := newBuilder(ctx, nixlab.BuilderOptions{Name: "crowd"})
		clients := make([]*daemon.Client, crowd)
		dispatchers := make([]*dispatcher, crowd)
		for i := range crowd {
			dispatchers[i] = newDispatcher(builder.MachinesLine(2))
			clients[i] = dispatchers[i].speak(ctx, uint32(1000+i))
		}

		began := time.Now()
		buildAll(ctx, clients, "echo built > $out")
		took := time.Since(began)
		log := builder.Logs()
		AddReportEntry("how it went", fmt.Sprintf("the slowest build took %v; sshd dropped %d connections, %d of them as a penalty",
			took, strings.Count(log, "drop connection"), strings.Count(log, "penalty")))
	}, SpecTimeout(specTimeout))

	It("makes as many connections as a builder's MaxSessions asks for", func(ctx context.Context) {
		builder := newBuilder(ctx, nixlab.BuilderOptions{Name: "sessions", SSHDConfig: "MaxSessions 2"})
		d := newDispatcher(builder.MachinesLine(6))
		clients := make([]*daemon.Client, 6)
		for i := range clients {
			clients[i] = d.speak(ctx, uint32(1000+i))
		}
		// All at once, or they would not have to share connections.
		buildAll(ctx, clients, "/bin/sleep 2; echo built > $out")
		Expect(strings.Count(builder.Logs(), "Accepted publickey")).To(BeNumerically(">=", 3))
	}, SpecTimeout(specTimeout))
})

// buildAll has each client build a derivation of its own, all at the same time.
func buildAll(ctx context.Context, clients []*daemon.Client, script string) {
	GinkgoHelper()
	failures := make([]string, len(clients))
	var wg sync.WaitGroup
	for i, client := range clients {
		wg.Go(func() {
			path, drv := crowdDerivation(i, script)
			result, err := client.BuildDerivation(ctx, path, drv, daemon.BuildNormal, nil)
			if err != nil {
				failures[i] = err.Error()
			} else if !result.Status.Success() {
				failures[i] = result.ErrorMessage
			}
		})
	}
	wg.Wait()
	Expect(failures).To(HaveEach(""))
}
