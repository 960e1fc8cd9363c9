// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	"context"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// foreign is a system that no machine of these tests builds for.
const foreign = "riscv64-linux"

// useless is what a builder looks like that cannot build at all.
var useless = seen{State: v1alpha1.EndpointUnhealthy, Reason: "CanaryFailed", Verified: "False CanaryFailed", Ready: "False CanaryFailed"}

// partial is one that is of use for its own system only.
var partial = seen{
	State: v1alpha1.EndpointHealthy, Reason: "SystemsRefuted", Verified: "False SystemsRefuted", Ready: "False SystemsRefuted", Systems: nixlab.System(),
}

// well is one with nothing wrong.
var well = seen{State: v1alpha1.EndpointHealthy, Reason: "AllStepsPassed", Verified: "True SystemsVerified", Ready: "True AllHealthy", Systems: nixlab.System()}

// canaryBreakage is one way in which a builder passes every step and cannot build.
type canaryBreakage struct {
	conf    string // for nix.conf
	systems []string
	store   func(*testing.T, *nixlab.Lab) string
	// before happens on the machine before it is declared.
	before    string
	want      seen
	wantWords []string
	// remedy is what the message says, done on the machine, or else to the spec.
	remedy     string
	remedySpec func(*v1alpha1.NixBuilderSpec)
}

func canaryBreakages() map[string]canaryBreakage {
	both := []string{nixlab.System(), foreign}
	one := func(spec *v1alpha1.NixBuilderSpec) { spec.Systems = []string{nixlab.System()} }
	return map[string]canaryBreakage{
		"users": {
			conf: "build-users-group = makers", want: useless,
			wantWords: []string{"'makers'", "make the group of build-users-group"},
			remedy:    "echo makers:x:7777:nixbld1,nixbld2 >>/etc/group",
		},
		"no-users": {
			conf: "build-users-group = makers", before: "echo makers:x:7777: >>/etc/group", want: useless,
			wantWords: []string{"has no members", "with users as its members"},
			remedy:    "sed -i 's/^makers:.*/makers:x:7777:nixbld1,nixbld2/' /etc/group",
		},
		"sandbox": {
			conf: "sandbox = true\nsandbox-paths = /opt/sandbox", want: useless,
			wantWords: []string{"/opt/sandbox", "sandbox-paths"}, remedy: "mkdir -p /opt/sandbox",
		},
		"disk": {
			store: smallDisk, want: useless,
			// Some room stays: a daemon that cannot open its database answers nobody.
			before:    "nix-store --init; head -c $(($(stat -fc '%a*%S' /nix) - 2000000)) /dev/zero >/nix/var/filler",
			wantWords: []string{"lack of free disk space", "free space there"}, remedy: "rm /nix/var/filler",
		},
		"jobs": {conf: "max-jobs = 0", want: useless, wantWords: []string{"build", "set max-jobs"}},
		"system": {
			systems: both, want: partial, wantWords: []string{foreign, "correct spec.systems"}, remedySpec: one,
		},
		"emulation": {
			conf: "extra-platforms = " + foreign, systems: both, want: partial,
			wantWords: []string{foreign, "Exec format error", "binfmt_misc", "leave it out of spec.systems"}, remedySpec: one,
		},
	}
}

// smallDisk is a directory with little room for a store.
func smallDisk(t *testing.T, lab *nixlab.Lab) string {
	t.Helper()
	dir, err := os.MkdirTemp(lab.Dir(), "disk-")
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("disk", dir, "tmpfs", 0, "size=64m,mode=755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// Builders that pass everything else are found out by the canary, are told apart, and
// are well again once what the message says is done. All are broken at the same time,
// since canaries that fail are repeated only after half a minute.
func TestCanaryFindsBuildersThatCannotBuild(t *testing.T) {
	s := newSite(t)
	for _, version := range nixlab.Versions() {
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			var mended []func()
			for what, breakage := range canaryBreakages() {
				if mend := s.breakOne(t, what+"-"+strings.ReplaceAll(string(version), ".", ""), version, breakage); mend != nil {
					mended = append(mended, mend)
				}
			}
			for _, await := range mended {
				await()
			}
		})
	}
}

// breakOne checks what is said of one breakage and applies the remedy. What it returns
// waits until that has shown.
func (s *site) breakOne(t *testing.T, name string, version nixlab.Version, breakage canaryBreakage) (mended func()) {
	t.Helper()
	opts := nixlab.BuilderOptions{Name: name, Version: version, NixConf: breakage.conf}
	if breakage.store != nil {
		opts.Store = breakage.store(t, s.lab)
	}
	builder := s.newBuilder(t, opts)
	run(t, builder, breakage.before)
	key := s.declare(t, name, builder, func(spec *v1alpha1.NixBuilderSpec) {
		spec.Probe.Canary = v1alpha1.CanaryEnabled
		if breakage.systems != nil {
			spec.Systems = breakage.systems
		}
	})
	message := s.await(t, key, breakage.want)
	t.Logf("%s: %s", name, message)
	for _, word := range breakage.wantWords {
		if !strings.Contains(message, word) {
			t.Errorf("%s: the message lacks %q: %s", name, word, message)
		}
	}
	switch {
	case breakage.remedy != "":
		run(t, builder, breakage.remedy)
	case breakage.remedySpec != nil:
		s.change(t, key, breakage.remedySpec)
	default:
		return nil
	}
	return func() {
		t.Helper()
		s.await(t, key, well)
		if got := s.eventReasons(t, name)[breakage.want.Reason]; got != 1 {
			t.Errorf("%s: %d events %s", name, got, breakage.want.Reason)
		}
	}
}

// run runs a script on a builder as root, if there is one.
func run(t *testing.T, builder *nixlab.Builder, script string) string {
	t.Helper()
	if script == "" {
		return ""
	}
	output, err := builder.Exec(t.Context(), "sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	return output
}

func (s *site) change(t *testing.T, key client.ObjectKey, change func(*v1alpha1.NixBuilderSpec)) {
	t.Helper()
	var object v1alpha1.NixBuilder
	if err := s.Get(t.Context(), key, &object); err != nil {
		t.Fatal(err)
	}
	patch := client.MergeFrom(object.DeepCopy())
	change(&object.Spec)
	if err := s.Patch(t.Context(), &object, patch); err != nil {
		t.Fatal(err)
	}
}

// A builder that is well costs no writes once its canary has been through, nor does
// one with a system that stays refuted.
func TestCanaryWritesNothingInSteadyState(t *testing.T) {
	s := newSite(t)
	for name, want := range map[string]seen{"steady-well": well, "steady-partial": partial} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			builder := s.newBuilder(t, nixlab.BuilderOptions{Name: name})
			key := s.declare(t, name, builder, func(spec *v1alpha1.NixBuilderSpec) {
				spec.Probe.Canary = v1alpha1.CanaryEnabled
				if want == partial {
					spec.Systems = append(spec.Systems, foreign)
				}
			})
			s.await(t, key, want)
			// Events are written aside; a probe later they are.
			time.Sleep(6 * time.Second)
			before := s.statusWrites(t, name)
			if before == 0 {
				t.Error("the audit log shows no writes at all")
			}
			// That is longer than until the first repetition of a canary.
			time.Sleep(40 * time.Second)
			if after := s.statusWrites(t, name); after != before {
				t.Errorf("%d writes", after-before)
			}
			s.await(t, key, want)
		})
	}
}

// However often there is a canary, a builder keeps one small path of it, whose name
// is that of its contents, and nothing else; garbage collection takes that, too.
func TestCanariesLeaveOneSmallPath(t *testing.T) {
	const times = 20
	if err := nixlab.Prerequisites(); err != nil {
		t.Skip(err)
	}
	lab, err := nixlab.New(nixlab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	}()
	s := &site{lab: lab}
	for _, version := range nixlab.Versions() {
		for _, sandbox := range []string{"false", "true"} {
			name := "leaves-" + strings.ReplaceAll(string(version), ".", "") + "-" + sandbox
			t.Run(name, func(t *testing.T) {
				builder := s.newBuilder(t, nixlab.BuilderOptions{Name: name, Version: version, NixConf: "sandbox = " + sandbox + "\nbuild-users-group = nixbld"})
				for range times {
					oneCanary(t, lab, builder)
				}
				expectNothingLeft(t, builder)
			})
		}
	}
}

// oneCanary probes a builder with a prober that does not know it yet.
func oneCanary(t *testing.T, lab *nixlab.Lab, builder *nixlab.Builder) {
	t.Helper()
	secret, err := os.ReadFile(lab.ClientKeyFile())
	if err != nil {
		t.Fatal(err)
	}
	key := probe.Key{Namespace: "ci", Name: "it"}
	results := make(chan probe.Result, 1)
	prober := probe.New(probe.Options{Dial: sshconn.NewDialer(nil), OnResult: func(_ probe.Key, result probe.Result) { results <- result }})
	prober.Set(key, []probe.Target{{
		Endpoint: "b", Host: builder.IP(), Port: builder.Port(), User: nixlab.TrustedUser, HostKeys: []string{builder.HostKey()},
		Credentials: []probe.Credential{{Name: "key", PrivateKey: secret}}, Systems: []string{nixlab.System()}, Canary: true,
	}})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- prober.Start(ctx) }()
	select {
	case result := <-results:
		if got := result.Outcome(probe.StepSystemsVerified); got.Reason != probe.ReasonSystemsVerified {
			t.Errorf("%+v", result)
		}
	case <-time.After(patience):
		t.Error("no result")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func expectNothingLeft(t *testing.T, builder *nixlab.Builder) {
	t.Helper()
	paths, err := builder.StorePaths()
	if err != nil {
		t.Fatal(err)
	}
	if len(paths) != 1 {
		t.Fatalf("store paths %v", paths)
	}
	path := "/nix/store/" + paths[0]
	if size := strings.TrimSpace(run(t, builder, "stat -c %s "+path)); len(size) > 3 {
		t.Errorf("it has %s bytes", size)
	}
	if valid := strings.Fields(run(t, builder, "nix-store --query --hash "+path+"")); len(valid) == 0 {
		t.Error("it is not valid")
	}
	// As if somebody had added the same program under the same name.
	added := strings.TrimSpace(run(t, builder, "mkdir /tmp/add && cp "+path+" /tmp/add/nix-builder-canary && nix-store --add /tmp/add/nix-builder-canary && rm -r /tmp/add"))
	if added != path {
		t.Errorf("Nix calls it %s, not %s", added, path)
	}
	all := strings.Fields(run(t, builder, "cd /nix/store && ls -A; ls -A /tmp; ls -A /nix/var/nix/builds 2>/dev/null || true"))
	all = slices.DeleteFunc(all, func(name string) bool {
		return name == ".links" || name == paths[0] || strings.HasSuffix(name, "-nix-builder-canary.lock")
	})
	if len(all) > 0 {
		t.Errorf("it also leaves %v", all)
	}
	locks := strings.Fields(run(t, builder, "find /nix/store -name '*.lock' -size -1"))
	logs := strings.Fields(run(t, builder, "find /nix/var/log/nix/drvs -type f"))
	if len(locks) > 1 || len(logs) > 1 {
		t.Errorf("locks %v, logs %v", locks, logs)
	}
	if n, err := builder.BuildsRunning(); err != nil || n != 0 {
		t.Errorf("%d builds run, %v", n, err)
	}
	run(t, builder, "nix-store --gc 2>/dev/null")
	if left, err := builder.StorePaths(); err != nil || len(left) > 0 {
		t.Errorf("garbage collection leaves %v, %v", left, err)
	}
}
