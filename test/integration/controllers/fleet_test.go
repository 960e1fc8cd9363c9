// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package controllers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/builders"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

const (
	fleetSize = 500
	// fleetMemory is what the operator may take with such a fleet, in bytes.
	fleetMemory = 256 << 20
)

// steadyState is how long the fleet is watched: more than an interval, or what
// STEADY_STATE says, such as 10m.
func steadyState() time.Duration {
	GinkgoHelper()
	text := os.Getenv("STEADY_STATE")
	if text == "" {
		return 35 * time.Second
	}
	duration, err := time.ParseDuration(text)
	Expect(err).NotTo(HaveOccurred(), "STEADY_STATE")
	return duration
}

// startManager builds and runs the operator's program until the end of the spec.
func startManager(ctx context.Context, namespace string) *exec.Cmd {
	GinkgoHelper()
	dir := GinkgoT().TempDir()
	program, kubeconfig := filepath.Join(dir, "manager"), filepath.Join(dir, "kubeconfig")
	out, err := exec.CommandContext(ctx, "go", "build", "-o", program, "nixbuilder.io/nix-builder-operator/cmd/manager").CombinedOutput()
	Expect(err).NotTo(HaveOccurred(), "%s", out)
	Expect(environment.WriteKubeconfig(kubeconfig)).To(Succeed())
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	Expect(err).NotTo(HaveOccurred())
	health := listener.Addr().String()
	Expect(listener.Close()).To(Succeed())

	manager := exec.Command(program, "--kubeconfig="+kubeconfig, "--leader-elect", "--leader-election-namespace="+namespace,
		"--watch-namespaces="+namespace, "--metrics-bind-address=0", "--health-probe-bind-address="+health,
		"--denied-ranges=", "--log-format=console")
	manager.Stdout, manager.Stderr = GinkgoWriter, GinkgoWriter
	Expect(manager.Start()).To(Succeed())
	DeferCleanup(func() {
		Expect(manager.Process.Signal(syscall.SIGTERM)).To(Succeed())
		Expect(manager.Wait()).To(Succeed())
	})
	Eventually(func() error {
		response, err := http.Get("http://" + health + "/readyz")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return errors.New(response.Status)
		}
		return nil
	}).Should(Succeed())
	return manager
}

// usage is what a process has taken so far.
type usage struct {
	peakMemory int64 // bytes
	cpu        time.Duration
}

func usageOf(process *os.Process) usage {
	GinkgoHelper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", process.Pid))
	Expect(err).NotTo(HaveOccurred())
	var used usage
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kibibytes, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			Expect(err).NotTo(HaveOccurred())
			used.peakMemory = kibibytes << 10
		}
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", process.Pid))
	Expect(err).NotTo(HaveOccurred())
	// proc(5): utime and stime are fields 14 and 15, the name in field 2 is in parentheses.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	const tick = 10 * time.Millisecond
	for _, field := range fields[11:13] {
		ticks, err := strconv.ParseInt(field, 10, 64)
		Expect(err).NotTo(HaveOccurred())
		used.cpu += time.Duration(ticks) * tick
	}
	return used
}

var _ = Describe("The operator with a large fleet", func() {
	It("writes nothing in steady state but its Lease", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		key, _ := sshtest.NewKeyFile(GinkgoTB())
		Expect(apiServer.Create(withTimeout(ctx), credential(namespace, builders.DefaultSecret, key))).To(Succeed())
		const perBuilder = 50
		for first := 0; first < fleetSize; first += perBuilder {
			wrapper := builders.MakeNixBuilder(fmt.Sprintf("fleet-%d", first/perBuilder)).Namespace(namespace)
			for i := range perBuilder {
				wrapper.EndpointWith(startMachine().endpoint(fmt.Sprintf("e%d", i)))
			}
			Expect(apiServer.Create(withTimeout(ctx), wrapper.Obj())).To(Succeed())
		}

		begin := time.Now()
		manager := startManager(ctx, namespace)
		Eventually(func(g Gomega) {
			var list v1alpha1.NixBuilderList
			g.Expect(apiServer.List(withTimeout(ctx), &list, client.InNamespace(namespace))).To(Succeed())
			healthy := 0
			for i := range list.Items {
				healthy += int(list.Items[i].Status.HealthyEndpoints)
			}
			g.Expect(healthy).To(Equal(fleetSize))
		}).WithTimeout(2 * time.Minute).Should(Succeed())
		AddReportEntry("from start to all healthy", time.Since(begin).Round(time.Second))
		awaitQuiet(namespace)

		duration, before := steadyState(), usageOf(manager.Process)
		begin = time.Now()
		Eventually(time.Now).WithTimeout(duration + time.Minute).Should(BeTemporally(">=", begin.Add(duration)))
		after := usageOf(manager.Process)
		leases := 0
		writes, err := environment.Writes()
		Expect(err).NotTo(HaveOccurred())
		for _, write := range writes {
			if write.Namespace != namespace || write.Time.Before(begin) {
				continue
			}
			Expect(write.Resource).To(Equal("leases"), "write %+v", write)
			leases++
		}
		Expect(leases).To(BeNumerically(">", 0), "the audit log shows no Lease: does it show anything?")
		AddReportEntry("steady state", fmt.Sprintf("%s: %d writes of the Lease and no others; peak memory %d MiB, CPU %.1f %% of one core",
			duration, leases, after.peakMemory>>20, 100*(after.cpu-before.cpu).Seconds()/duration.Seconds()))
		Expect(after.peakMemory).To(BeNumerically("<", fleetMemory))
	})
})

// awaitQuiet waits until nothing but Leases was written in a namespace for a
// while: the last events and ConfigMaps follow the last status.
func awaitQuiet(namespace string) {
	GinkgoHelper()
	const quiet = 3 * time.Second
	Eventually(func(g Gomega) {
		writes, err := environment.Writes()
		g.Expect(err).NotTo(HaveOccurred())
		for _, write := range writes {
			if write.Namespace == namespace && write.Resource != "leases" {
				g.Expect(write.Time).To(BeTemporally("<", time.Now().Add(-quiet)))
			}
		}
	}).Should(Succeed())
}
