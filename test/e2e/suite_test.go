// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package e2e_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

const (
	// specTimeout bounds every spec; most take a second.
	specTimeout = 3 * time.Minute
	// patience is for what another process does soon.
	patience = 30 * time.Second
)

var (
	lab *nixlab.Lab
	// programs is the directory of the binaries under test.
	programs string
	// nixVersions says which exact version stands behind each of the lab's.
	nixVersions = map[nixlab.Version]string{}
)

func TestE2E(t *testing.T) {
	if err := nixlab.Prerequisites(); err != nil {
		t.Skip(err)
	}
	RegisterFailHandler(Fail)
	suite, reporter := GinkgoConfiguration()
	suite.Timeout = 25 * time.Minute
	RunSpecs(t, "Operator and dispatcher with real Nix", Label("e2e"), suite, reporter)
}

var _ = BeforeSuite(func(ctx context.Context) {
	var err error
	lab, err = nixlab.New(nixlab.Options{Progress: func(line string) { GinkgoWriter.Println(line) }})
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() { Expect(lab.Close()).To(Succeed()) })

	programs = filepath.Join(lab.Dir(), "bin")
	build := exec.CommandContext(ctx, "go", "build", "-o", programs+"/", "./cmd/...")
	build.Dir = filepath.Join("..", "..")
	// The flags of `make build`, so that both share what they compile.
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false")
	output, err := build.CombinedOutput()
	Expect(err).NotTo(HaveOccurred(), string(output))

	roots, err := lab.Prepare(ctx, nixlab.Versions()...)
	Expect(err).NotTo(HaveOccurred())
	for _, root := range roots {
		nixVersions[root.Version] = root.Nix
	}
}, NodeTimeout(10*time.Minute))

// slug makes a host or derivation name of a version.
func slug(version nixlab.Version) string { return strings.ReplaceAll(string(version), ".", "") }

// newBuilder starts a builder that lasts until the end of the current node.
func newBuilder(ctx context.Context, opts nixlab.BuilderOptions) *nixlab.Builder {
	GinkgoHelper()
	builder, err := lab.StartBuilder(ctx, opts)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(builder.Kill)
	DeferCleanup(func() {
		if CurrentSpecReport().Failed() {
			AddReportEntry("log of builder "+builder.Name(), builder.Logs())
		}
	})
	return builder
}

// newClient starts a client of the dispatcher.
func newClient(ctx context.Context, d *dispatcher, opts nixlab.ClientOptions) *nixlab.Client {
	GinkgoHelper()
	opts.Volume = d.volume
	client, err := lab.StartClient(ctx, opts)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(client.Kill)
	return client
}

// mustBuild builds an expression and returns the result and the paths.
func mustBuild(ctx context.Context, client *nixlab.Client, expression string, args ...string) (nixlab.Result, []string) {
	GinkgoHelper()
	result, err := client.NixBuildExpr(ctx, expression, args...)
	Expect(err).NotTo(HaveOccurred())
	Expect(result.Status).To(BeZero(), "standard error of nix-build:\n%s", result.Stderr)
	return result, strings.Fields(result.Stdout)
}

// built is how the name of a store path looks that was built under the name.
func built(name string) string { return fmt.Sprintf("-%s$", name) }
