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

// crowdDerivation is a derivation without inputs that differs for each dispatcher.
func crowdDerivation(number int) (string, *daemon.BasicDerivation) {
	base := fmt.Sprintf("/nix/store/%032d-crowd", number)
	return base + ".drv", &daemon.BasicDerivation{
		Outputs:  []daemon.DerivationOutput{{Name: "out", Path: base}},
		Platform: nixlab.System(), Builder: "/bin/sh", Args: []string{"-c", "echo built > $out"},
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
		var wg sync.WaitGroup
		var mu sync.Mutex
		var failures []string
		var slowest time.Duration
		for i, client := range clients {
			wg.Go(func() {
				path, drv := crowdDerivation(i)
				result, err := client.BuildDerivation(ctx, path, drv, daemon.BuildNormal, nil)
				mu.Lock()
				defer mu.Unlock()
				slowest = max(slowest, time.Since(began))
				if err != nil {
					failures = append(failures, err.Error())
				} else if !result.Status.Success() {
					failures = append(failures, result.ErrorMessage)
				}
			})
		}
		wg.Wait()
		log := builder.Logs()
		AddReportEntry("how it went", fmt.Sprintf("the slowest build took %v; sshd dropped %d connections, %d of them as a penalty",
			slowest, strings.Count(log, "drop connection"), strings.Count(log, "penalty")))
		Expect(failures).To(BeEmpty())
	}, SpecTimeout(specTimeout))
})
