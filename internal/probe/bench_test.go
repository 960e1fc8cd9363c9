// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

const (
	benchEndpoints = 500
	// benchServers makes TestServeFleet a process of servers, so that their cost is
	// not taken for the prober's.
	benchServers = "PROBE_BENCH_SERVERS"
)

// BenchmarkFleet runs the prober for three intervals on 500 endpoints and reports
// what it costs: CPU time per probe, share of one processor, heap and goroutines at
// rest, and the process's largest resident size. Run it with -benchtime=1x.
func BenchmarkFleet(b *testing.B) {
	addresses, hostKey := startServers(b)
	key, _ := sshtest.NewKeyFile(b)
	var targets []Target
	for i, address := range addresses {
		_, port, _ := strings.Cut(address, ":")
		target := Target{
			Endpoint: fmt.Sprint(i), User: "nixt", Discovery: true, Systems: []string{"x86_64-linux"},
			// Different names for one address, as different machines have.
			Host:        fmt.Sprintf("127.1.%d.%d", i/250, i%250+1),
			HostKeys:    []string{hostKey},
			Credentials: []Credential{{Name: "k", PrivateKey: key}},
		}
		if _, err := fmt.Sscan(port, &target.Port); err != nil {
			b.Fatal(err)
		}
		targets = append(targets, target)
	}
	for b.Loop() {
		var probes atomic.Int64
		p := New(Options{
			Dial:     toLoopback(sshconn.NewDialer(nil)),
			OnResult: func(Key, Result) { probes.Add(1) },
		})
		ctx, cancel := context.WithTimeout(b.Context(), 3*DefaultInterval)
		before := cpuTime(b)
		var work sync.WaitGroup
		work.Go(func() { _ = p.Start(ctx) })
		p.Set(builder, targets)
		<-ctx.Done()
		spent := cpuTime(b) - before
		cancel()
		work.Wait()
		runtime.GC()
		var memory runtime.MemStats
		runtime.ReadMemStats(&memory)
		for name, snapshot := range p.Snapshot(builder) {
			if snapshot.State != StateHealthy {
				b.Fatalf("%s: %s", name, snapshot.Message)
			}
		}
		b.ReportMetric(float64(probes.Load()), "probes")
		b.ReportMetric(spent.Seconds()*1000/float64(probes.Load()), "cpu-ms/probe")
		b.ReportMetric(spent.Seconds()/(3*DefaultInterval).Seconds()*100, "%cpu")
		b.ReportMetric(float64(memory.HeapAlloc)/(1<<20), "heap-MiB")
		b.ReportMetric(float64(maxResident(b))/(1<<10), "max-rss-MiB")
		b.ReportMetric(float64(runtime.NumGoroutine()), "goroutines")
	}
}

// toLoopback sends every connection to 127.0.0.1.
func toLoopback(dial sshconn.DialFunc) sshconn.DialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		_, port, _ := strings.Cut(address, ":")
		return dial(ctx, network, "127.0.0.1:"+port)
	}
}

func usage(tb testing.TB) *syscall.Rusage {
	tb.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return &u
}

func cpuTime(tb testing.TB) time.Duration {
	u := usage(tb)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// maxResident is in KiB.
func maxResident(tb testing.TB) int64 { return usage(tb).Maxrss }

// startServers starts the other process and returns where its servers listen.
func startServers(tb testing.TB) (addresses []string, hostKey string) {
	tb.Helper()
	command := exec.Command(os.Args[0], "-test.run=^TestServeFleet$", "-test.timeout=0")
	command.Env = append(os.Environ(), benchServers+"=1")
	command.Stderr = os.Stderr
	stdin, err := command.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := command.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = stdin.Close()
		_ = command.Wait()
	})
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		switch kind, value, _ := strings.Cut(lines.Text(), "="); kind {
		case "key":
			hostKey = value
		case "address":
			addresses = append(addresses, value)
		}
		if len(addresses) == benchEndpoints {
			return addresses, hostKey
		}
	}
	tb.Fatalf("only %d servers came up", len(addresses))
	return nil, ""
}

// TestServeFleet is the process that BenchmarkFleet starts.
func TestServeFleet(t *testing.T) {
	if os.Getenv(benchServers) == "" {
		t.Skip("this is a part of BenchmarkFleet")
	}
	nix := newNix(t, daemontest.Options{})
	hostKey := sshtest.NewKey(t)
	fmt.Printf("key=%s\n", sshconn.AuthorizedKey(hostKey.PublicKey()))
	for range benchEndpoints {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		server := sshtest.Serve(t, listener, hostKey, sshtest.Behavior{Exec: nix.exec})
		fmt.Printf("address=%s\n", server.Addr())
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
}
