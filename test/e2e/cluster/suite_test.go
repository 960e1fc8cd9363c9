// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package cluster_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/cluster"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

const (
	root = "../../.."
	// specTimeout bounds every spec; most take some seconds.
	specTimeout = 5 * time.Minute
	// patience is for what happens soon.
	patience = time.Minute
	// image is the name of the image under test, as the chart has it by default.
	image = "nix-builder-operator:0.1.0"
)

var (
	kube *cluster.Cluster
	api  client.Client
	// builders are of different Nix versions; newer is the last.
	older, newer *cluster.Builder
	// helmProgram and chart are what installs.
	helmProgram, chart string
)

// clientImage has Nix and no SSH; sshImage has both.
var clientImage, sshImage = cluster.ClientImage{}, cluster.ClientImage{SSH: true}

func TestCluster(t *testing.T) {
	if err := cluster.Prerequisites(); err != nil {
		t.Skip(err)
	}
	RegisterFailHandler(Fail)
	suite, reporter := GinkgoConfiguration()
	suite.Timeout = 40 * time.Minute
	RunSpecs(t, "In a cluster", Label("cluster"), suite, reporter)
}

var _ = BeforeSuite(func(ctx context.Context) {
	log.SetLogger(GinkgoLogr)
	parts, err := cluster.FindParts(root)
	Expect(err).NotTo(HaveOccurred())
	directory := GinkgoT().TempDir()
	build := exec.CommandContext(ctx, "make", "-C", root, "image", "DIST="+directory, "PLATFORMS=linux/"+architecture(), "IMAGE="+image)
	output, err := build.CombinedOutput()
	Expect(err).NotTo(HaveOccurred(), string(output))
	tool, err := exec.CommandContext(ctx, filepath.Join(root, "hack", "tool.sh"), "--path", "helm").Output()
	Expect(err).NotTo(HaveOccurred())
	helmProgram = strings.TrimSpace(string(tool))

	kube, err = cluster.Start(ctx, cluster.Options{
		Parts: parts, Images: []string{filepath.Join(directory, "image.tar")},
		Progress: func(line string) { GinkgoWriter.Println(line) },
	})
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() { Expect(kube.Close()).To(Succeed()) })
	for _, wanted := range []cluster.ClientImage{clientImage, sshImage} {
		Expect(kube.AddClientImage(ctx, wanted)).To(Succeed())
	}
	older, err = kube.StartBuilder(ctx, nixlab.BuilderOptions{Name: "older", Version: nixlab.Nix28})
	Expect(err).NotTo(HaveOccurred())
	newer, err = kube.StartBuilder(ctx, nixlab.BuilderOptions{Name: "newer", Version: nixlab.Newest})
	Expect(err).NotTo(HaveOccurred())

	Expect(v1alpha1.AddToScheme(scheme.Scheme)).To(Succeed())
	api, err = client.New(kube.Config(), client.Options{Scheme: scheme.Scheme})
	Expect(err).NotTo(HaveOccurred())
	packaged := helm(ctx, "package", filepath.Join(root, "charts", "nix-builder-operator"), "-d", directory)
	_, chart, _ = strings.Cut(strings.TrimSpace(packaged), "saved it to: ")
}, NodeTimeout(20*time.Minute))

func architecture() string {
	return map[string]string{"x86_64-linux": "amd64", "aarch64-linux": "arm64"}[nixlab.System()]
}

// helm runs Helm against the cluster, which has to work.
func helm(ctx context.Context, args ...string) string {
	GinkgoHelper()
	home := filepath.Join(kube.Dir(), "helm")
	command := kube.Command(ctx, append([]string{helmProgram}, args...)...)
	command.Env = append(command.Env, "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
	output, err := command.CombinedOutput()
	Expect(err).NotTo(HaveOccurred(), string(output))
	return string(output)
}

// kubectl runs kubectl, which has to work.
func kubectl(ctx context.Context, args ...string) string {
	GinkgoHelper()
	output, err := kube.Kubectl(ctx, args...)
	Expect(err).NotTo(HaveOccurred())
	return output
}

// figure keeps a measured time for the report.
func figure(what string, took time.Duration) {
	AddReportEntry(what, took.Round(10*time.Millisecond).String())
	fmt.Fprintf(os.Stderr, "figure: %s: %v\n", what, took.Round(10*time.Millisecond))
}

// A failed spec leaves behind what there was to see.
var _ = JustAfterEach(func(ctx SpecContext) {
	report := CurrentSpecReport()
	if !report.Failed() {
		return
	}
	name := regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(report.FullText()), "-")
	dir := filepath.Join(root, "bin", "e2e", strings.Trim(name, "-"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		GinkgoWriter.Println(err)
		return
	}
	keep := func(file, text string) {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			GinkgoWriter.Println(err)
		}
	}
	ask := func(file string, args ...string) {
		text, err := kube.Kubectl(ctx, args...)
		if err != nil {
			text += err.Error()
		}
		keep(file, text)
	}
	ask("events.txt", "get", "events", "--all-namespaces", "--sort-by=.lastTimestamp")
	ask("objects.yaml", "get", "nixbuilders,pods,jobs,deployments,configmaps,leases", "--all-namespaces", "-o", "yaml")
	ask("pods.txt", "describe", "pods", "--all-namespaces")
	pods, _ := kube.Kubectl(ctx, "get", "pods", "--all-namespaces", "--no-headers", "-o", "custom-columns=a:.metadata.namespace,b:.metadata.name")
	for line := range strings.Lines(pods) {
		if words := strings.Fields(line); len(words) == 2 {
			ask("log-"+words[0]+"-"+words[1]+".txt", "logs", "-n", words[0], words[1], "--all-containers", "--prefix")
		}
	}
	for _, service := range []string{cluster.APIServer, cluster.Kubelet, cluster.Containerd, cluster.Proxy, cluster.DNS} {
		keep(service+".log", kube.Node(1).Log(service))
	}
	for _, b := range []*cluster.Builder{older, newer} {
		keep("builder-"+b.Name()+".log", b.Logs())
	}
})
