// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package e2e_test

import (
	"bytes"
	"context"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// A builder dies after a client has one of two outputs, both too large for the spool.
var _ = Describe("A builder that dies between two outputs", func() {
	for what, tc := range map[string]struct{ source, want string }{
		"is replaced where the build is deterministic": {source: "yes same"},
		"ends in an error where it is not":             {source: "cat /dev/urandom", want: "has made a different"},
	} {
		It(what, func(ctx context.Context) {
			name := "halves-" + slug(nixlab.Version(strings.Fields(tc.source)[0]))
			builders := map[string]*nixlab.Builder{}
			var lines []string
			for _, n := range []string{"a", "b"} {
				b := newBuilder(ctx, nixlab.BuilderOptions{Name: name + "-" + n})
				builders[n], lines = b, append(lines, b.MachinesLine(1))
			}
			d := newDispatcherWith([]string{"--spooled-output-max-size=64Ki"}, lines...)
			path, drv := forged(name, tc.source+" | head -c 1000000 > $out; "+tc.source+" | head -c 1000000 > $dev")
			dev := strings.Replace(drv.Outputs[0].Path, "0-halves", "1-halves", 1) + "-dev"
			drv.Outputs = append(drv.Outputs, daemon.DerivationOutput{Name: "dev", Path: dev})
			drv.Env = append(drv.Env, daemon.EnvVar{Name: "dev", Value: dev})

			client := d.speak(ctx, 1)
			result, err := client.BuildDerivation(ctx, path, drv, daemon.BuildNormal, nil)
			Expect(err).NotTo(HaveOccurred())
			Expect(result.Status.Success()).To(BeTrue(), result.ErrorMessage)
			first, err := fetch(ctx, client, drv.Outputs[0].Path)
			Expect(err).NotTo(HaveOccurred())
			Expect(first.Len()).To(BeNumerically(">", 1000000))
			for _, b := range builders {
				if strings.Contains(strings.Join(mustList(b), "\n"), name) {
					b.Kill()
				}
			}
			second, err := fetch(ctx, client, dev)
			if tc.want != "" {
				Expect(err).To(MatchError(ContainSubstring(tc.want)))
				Expect(second.Len()).To(BeZero(), "a part of another run's output was delivered")
				return
			}
			Expect(err).NotTo(HaveOccurred())
			Expect(second.Bytes()).To(Equal(first.Bytes()))
		}, SpecTimeout(specTimeout))
	}
})

// fetch asks for a path and its archive.
func fetch(ctx context.Context, client *daemon.Client, path string) (*bytes.Buffer, error) {
	nar := new(bytes.Buffer)
	if _, _, err := client.QueryPathInfo(ctx, path, nil); err != nil {
		return nar, err
	}
	_, err := client.NARFromPath(ctx, path, nar, nil)
	return nar, err
}
