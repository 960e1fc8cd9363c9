// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// partial is one that is of use for its own system only.
var partial = seen{
	State: v1alpha1.EndpointHealthy, Reason: "SystemsRefuted", Verified: "False SystemsRefuted", Ready: "False SystemsRefuted", Systems: nixlab.System(),
}

// well is one with nothing wrong.
var well = seen{State: v1alpha1.EndpointHealthy, Reason: "AllStepsPassed", Verified: "True SystemsVerified", Ready: "True AllHealthy", Systems: nixlab.System()}

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
	t.Parallel()
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
	t.Parallel()
	const times = 20
	s := newLab(t)
	for _, version := range nixlab.Versions() {
		for _, sandbox := range []string{"false", "true"} {
			name := "leaves-" + strings.ReplaceAll(string(version), ".", "") + "-" + sandbox
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				builder := s.newBuilder(t, nixlab.BuilderOptions{Name: name, Version: version, NixConf: "sandbox = " + sandbox + "\nbuild-users-group = nixbld"})
				target := s.targetAt(t, builder)
				target.Canary = true
				for range times {
					result, err := probe.Once(t.Context(), probe.Options{Dial: sshconn.NewDialer(nil)}, target)
					if got := result.Outcome(probe.StepSystemsVerified); err != nil || got.Reason != probe.ReasonSystemsVerified {
						t.Fatalf("%+v, %v", result, err)
					}
				}
				expectNothingLeft(t, builder)
			})
		}
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
