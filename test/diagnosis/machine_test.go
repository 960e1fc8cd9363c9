// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// machineCauses are about the machine's disk, load and clock.
func machineCauses() []cause {
	unfit := func(reason string, words ...string) diagnosis {
		return diagnosis{condition: v1alpha1.ConditionMachineFit, reason: reason, words: words}
	}
	return []cause{
		{
			name: "disk-pressure", title: "The store's disk is nearly full",
			means:    "Builds would fail soon. The machine is used again once a fifth more than the threshold is free.",
			mend:     "Collect garbage on the machine (`nix-collect-garbage -d`), set `min-free` and `max-free` in its nix.conf, or lower `spec.thresholds.minFreeSpace`.",
			versions: nixlab.Versions(), spec: littleSpace, prepare: littleDisk,
			breaks: func(p *patient) { p.fill(9 << 20) },
			want: unfit("DiskPressure", "only about 9 MiB free", "threshold: 16 MiB", "used again from 19.2 MiB on", "nix-collect-garbage -d",
				"min-free", "spec.thresholds.minFreeSpace"),
			remedy: func(p *patient, _ string) { p.run("rm /nix/var/filler") },
		},
		{
			name: "disk-full", title: "The store's disk is full",
			means:    "The Nix daemon cannot open its database then, and hangs up on every client.",
			nixSays:  "error: Nix daemon disconnected unexpectedly (maybe it crashed?)",
			mend:     "Free some space first (old logs in `/nix/var/log`, results of builds), then collect garbage: that needs a little room itself.",
			versions: nixlab.Versions(), spec: littleSpace, prepare: littleDisk,
			breaks: func(p *patient) { p.fill(0) },
			want:   unfit("DiskPressure", "has less than 256 KiB free", "nix-collect-garbage -d"),
			remedy: func(p *patient, _ string) { p.run("rm /nix/var/filler") },
		},
		{
			name: "overloaded", title: "The machine is overloaded",
			means: "What else runs there may be as much to blame as builds.",
			mend:  "Lower `maxJobs`, find out what runs there (`top`), or raise `spec.thresholds.maxLoadPercent`.",
			spec:  func(spec *v1alpha1.NixBuilderSpec) { spec.Thresholds.MaxLoadPercent = 200 },
			prepare: func(p *patient) {
				p.run("echo 1.00 1.00 1.00 1/100 4711 >/tmp/load; mount --bind /tmp/load /proc/loadavg")
				p.script("getconf", "echo 4")
			},
			breaks: func(p *patient) { p.run("echo 9.20 5.00 2.00 20/100 4711 >/tmp/load") },
			want:   unfit("Overloaded", "its load is about 230 % of its processors (threshold: 200 %)", "Lower maxJobs", "raise the threshold in spec.thresholds"),
			remedy: func(p *patient, _ string) { p.run("echo 6.00 8.00 5.00 2/100 4711 >/tmp/load") },
		},
		{
			name: "memory-pressure", title: "The machine is short of memory",
			mend: "Lower `maxJobs`, find out what runs there (`top`), or raise `spec.thresholds.maxMemoryPressurePercent`.",
			spec: func(spec *v1alpha1.NixBuilderSpec) { spec.Thresholds.MaxMemoryPressurePercent = 50 },
			prepare: func(p *patient) {
				p.run("echo 'some avg10=0.00 avg60=1.00 avg300=0.00 total=0' >/tmp/memory; mount --bind /tmp/memory /proc/pressure/memory")
			},
			breaks: func(p *patient) { p.run("echo 'some avg10=0.00 avg60=72.00 avg300=0.00 total=0' >/tmp/memory") },
			want:   unfit("Overloaded", "processes wait for memory about 72 % of the time (threshold: 50 %)"),
			remedy: func(p *patient, _ string) {
				p.run("echo 'some avg10=0.00 avg60=39.00 avg300=0.00 total=0' >/tmp/memory")
			},
		},
		{
			name: "clock", title: "The machine's clock is wrong",
			means: "Files with times in the future confuse builds, and certificates are judged by the wrong time. The machine stays in use, since it may be the operator's clock that is wrong.",
			mend:  "Have the clock set by a time service on the machine (chrony, systemd-timesyncd), or on the operator's node if all machines are said to be wrong.",
			// Clocks cannot be set in a lab, but who is asked for the time may lie.
			breaks: func(p *patient) { p.script("date", "echo $(($(/bin/date +%s) + 10800))") },
			want: diagnosis{
				condition: v1alpha1.ConditionMachineFit, reason: "ClockSkewed", words: []string{"about 3 hours ahead of the operator's (threshold: 300 s)", "chrony"},
				state: v1alpha1.EndpointHealthy, listed: true, ready: true, quiet: true,
			},
			remedy: func(p *patient, _ string) { p.run("rm /usr/local/bin/date") },
		},
	}
}

// script puts a program before all others of its name.
func (p *patient) script(name, text string) {
	p.Helper()
	p.run(fmt.Sprintf("mkdir -p /usr/local/bin && printf '#!/bin/sh\n%%s\n' '%s' >/usr/local/bin/%s && chmod +x /usr/local/bin/%s", text, name, name))
}

func littleSpace(spec *v1alpha1.NixBuilderSpec) {
	spec.Thresholds.MinFreeSpace = new(resource.MustParse("16Mi"))
}

// littleDisk has the machine's store lie on a file system of 64 MiB.
func littleDisk(p *patient) {
	p.run("cp -a /nix /tmp/kept && mount -t tmpfs -o size=64m,mode=755 disk /nix && cp -a /tmp/kept/. /nix")
	p.restartDaemon()
}

// fill leaves so many bytes free on the file system of the machine's store.
func (p *patient) fill(free int) {
	p.Helper()
	p.run(fillScript(free))
}

func fillScript(free int) string {
	return fmt.Sprintf("rm -f /nix/var/filler; head -c $(($(stat -fc '%%a*%%S' /nix) - %d)) /dev/zero >/nix/var/filler", free)
}

// A real disk that fills and empties takes a machine out at the threshold and back in
// a fifth above it, and no probe in between changes a word of what is said.
func TestDiskHysteresis(t *testing.T) {
	s := newLab(t)
	builder := s.newBuilder(t, nixlab.BuilderOptions{Name: "hysteresis"})
	run(t, builder, "nix-store --init && cp -a /nix /tmp/kept && mount -t tmpfs -o size=64m,mode=755 disk /nix && cp -a /tmp/kept/. /nix")
	if err := builder.RestartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	target := s.targetAt(t, builder)
	target.Thresholds.MinFreeBytes = 20 << 20
	request := requester(t, target)
	message := ""
	for i, step := range []struct {
		free int // MiB
		want probe.Reason
		same bool // as before, to the letter
	}{
		{30, probe.ReasonMachineFit, false},
		{21, probe.ReasonMachineFit, true},
		{18, probe.ReasonDiskPressure, false},
		{22, probe.ReasonDiskPressure, true},
		{12, probe.ReasonDiskPressure, true},
		{23, probe.ReasonDiskPressure, true},
		{25, probe.ReasonMachineFit, false},
		{21, probe.ReasonMachineFit, true},
	} {
		run(t, builder, fillScript(step.free<<20+1<<19))
		result := request(fmt.Sprint(i))
		got := result.Outcome(probe.StepMachineFit)
		if got.Reason != step.want || step.same && got.Message != message {
			t.Errorf("with %d MiB: %+v, want %s\nbefore: %s", step.free, got, step.want, message)
		}
		if free := result.Facts.FreeBytes >> 20; free < int64(step.free)-2 || free > int64(step.free)+2 {
			t.Errorf("with %d MiB: %d MiB measured", step.free, free)
		}
		message = got.Message
	}
}

// Real load is seen, with a threshold that no busy machine keeps to.
func TestRealLoad(t *testing.T) {
	s := newLab(t)
	builder := s.newBuilder(t, nixlab.BuilderOptions{Name: "busy"})
	target := s.targetAt(t, builder)
	target.Thresholds = probe.Thresholds{MaxLoadPercent: 1}
	request := requester(t, target)
	run(t, builder, "timeout 60 sh -c 'while :; do :; done' >/dev/null 2>&1 &")
	for deadline := time.Now().Add(patience); ; {
		result := request(time.Now().String())
		if got := result.Outcome(probe.StepMachineFit); got.Reason == probe.ReasonOverloaded {
			t.Log(got.Message)
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v, load %d %%", result.Outcome(probe.StepMachineFit), result.Facts.LoadPercent)
		}
		time.Sleep(time.Second)
	}
}

// newLab starts a lab alone, for tests of the prober without an operator.
func newLab(t *testing.T) *site {
	t.Helper()
	if err := nixlab.Prerequisites(); err != nil {
		t.Skip(err)
	}
	lab, err := nixlab.New(nixlab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	return &site{lab: lab}
}

// targetAt is a builder as a prober gets it.
func (s *site) targetAt(t *testing.T, builder *nixlab.Builder) probe.Target {
	t.Helper()
	secret, err := os.ReadFile(s.lab.ClientKeyFile())
	if err != nil {
		t.Fatal(err)
	}
	return probe.Target{
		Endpoint: "b", Host: builder.IP(), Port: builder.Port(), User: nixlab.TrustedUser, HostKeys: []string{builder.HostKey()},
		Credentials: []probe.Credential{{Name: "key", PrivateKey: secret}}, Systems: []string{nixlab.System()},
	}
}

// requester runs a prober until the end of the test. What it returns has the target
// probed anew and waits for the result.
func requester(t *testing.T, target probe.Target) func(token string) probe.Result {
	t.Helper()
	key := probe.Key{Namespace: "ci", Name: "it"}
	prober := probe.New(probe.Options{Dial: sshconn.NewDialer(nil)})
	prober.Set(key, []probe.Target{target})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- prober.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return func(token string) probe.Result {
		t.Helper()
		prober.Request(key, token)
		for deadline := time.Now().Add(patience); ; time.Sleep(polling) {
			if snapshot := prober.Snapshot(key)[target.Endpoint]; snapshot.Requested == token {
				return snapshot.RequestedResult
			}
			if time.Now().After(deadline) {
				t.Fatal("no result")
			}
		}
	}
}

// Every shell understands what measures, on every version's machine.
func TestMachineIsMeasuredInEveryShell(t *testing.T) {
	s := newLab(t)
	for _, version := range nixlab.Versions() {
		builder := s.newBuilder(t, nixlab.BuilderOptions{Name: "shells-" + strings.ReplaceAll(string(version), ".", ""), Version: version})
		for _, shell := range append([]string{"bash"}, nixlab.LoginShells()...) {
			t.Run(string(version)+"/"+shell, func(t *testing.T) {
				if err := builder.SetLoginShell(t.Context(), nixlab.TrustedUser, shell); err != nil {
					t.Fatal(err)
				}
				target := s.targetAt(t, builder)
				target.Thresholds = probe.Thresholds{MinFreeBytes: 1, MaxLoadPercent: 1e6, MaxClockSkew: time.Minute}
				result, err := probe.Once(t.Context(), probe.Options{Dial: sshconn.NewDialer(nil)}, target)
				if err != nil {
					t.Fatal(err)
				}
				facts := result.Facts
				if got := result.Outcome(probe.StepMachineFit); got.Reason != probe.ReasonMachineFit || facts.StoreBytes == 0 || facts.Processors == 0 {
					t.Errorf("%+v, %+v", got, facts)
				}
			})
		}
	}
}
