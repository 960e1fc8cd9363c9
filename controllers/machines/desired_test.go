// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"encoding/base64"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/nix/machines"
	"nixbuilder.io/nix-builder-operator/test/builders"
)

var now = time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)

// ago is a time before now.
func ago(d time.Duration) *metav1.Time { return &metav1.Time{Time: now.Add(-d)} }

// accept makes a builder accepted, and its statuses those of its endpoints'
// addresses unless they name others.
func accept(w *builders.NixBuilderWrapper) *builders.NixBuilderWrapper {
	w.Condition(v1alpha1.ConditionAccepted, metav1.ConditionTrue, "Accepted")
	return w.Change(func(b *v1alpha1.NixBuilder) {
		for i := range b.Spec.Endpoints {
			if status := b.Status.Endpoint(b.Spec.Endpoints[i].Name); status != nil && status.Address == "" {
				status.Address = b.Spec.Endpoints[i].Address()
			}
		}
	})
}

// linux starts a builder of that name for x86_64-linux.
func linux(name string) *builders.NixBuilderWrapper {
	return builders.MakeNixBuilder(name).Systems("x86_64-linux")
}

func healthy(name string) v1alpha1.EndpointStatus {
	return v1alpha1.EndpointStatus{Name: name, State: v1alpha1.EndpointHealthy, Reason: "Healthy", LastTransitionTime: ago(time.Hour)}
}

// down is out of use, and was in use until some time ago.
func down(name string, last time.Duration) v1alpha1.EndpointStatus {
	return v1alpha1.EndpointStatus{
		Name: name, State: v1alpha1.EndpointUnhealthy, Reason: "ConnectionRefused", FailedCondition: v1alpha1.ConditionReachable,
		LastTransitionTime: ago(last), LastHealthyTime: ago(last),
	}
}

func suspect(name string) v1alpha1.EndpointStatus {
	status := down(name, time.Minute)
	status.State = v1alpha1.EndpointSuspect
	return status
}

func render(t *testing.T, list ...*builders.NixBuilderWrapper) *Content {
	t.Helper()
	var objects []v1alpha1.NixBuilder
	for _, w := range list {
		objects = append(objects, *accept(w).Obj())
	}
	content, err := Desired(objects, now)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// lines gives, for each machine in the file, its host and systems.
func lines(t *testing.T, content *Content) []string {
	t.Helper()
	list, err := machines.ParsePortable(KeyMachines, []byte(content.Data[KeyMachines]))
	if err != nil {
		t.Fatal(err)
	}
	var short []string
	for _, machine := range list {
		short = append(short, machine.URI.Host+" "+strings.Join(machine.Systems, ","))
	}
	return short
}

// A line of a builder that uses every column.
func TestMachinesFileLine(t *testing.T) {
	t.Parallel()
	status := healthy("a")
	status.Credential = "new"
	content := render(t, builders.MakeNixBuilder("mac").Systems("x86_64-darwin", "aarch64-darwin").
		Features("benchmark", "big-parallel").MandatoryFeatures("xcode").Secrets("old", "new").MaxJobs(8).
		EndpointWith(v1alpha1.Endpoint{Name: "a", Host: "a.example.org", HostKeys: []string{builders.HostKey("a") + " root@a, the first; #1"}}).
		Change(func(b *v1alpha1.NixBuilder) {
			b.Spec.SpeedFactor = 2
			b.Spec.RemoteProgram = "/opt/nix+x/bin/nix-daemon"
		}).
		EndpointStatus(status))
	want := "ssh-ng://nix@a.example.org?remote-program=/opt/nix%2Bx/bin/nix-daemon aarch64-darwin,x86_64-darwin " +
		"/etc/nix-keys/new/ssh-privatekey 8 2 benchmark,big-parallel xcode " +
		base64.StdEncoding.EncodeToString([]byte(builders.HostKey("a"))) + "\n"
	if diff := cmp.Diff(want, content.Data[KeyMachines]); diff != "" {
		t.Errorf("machines (-want +got):\n%s", diff)
	}
	if content.Lines != 1 {
		t.Errorf("Lines = %d, want 1", content.Lines)
	}
}

func TestMachinesFileHasEightColumnsEachLine(t *testing.T) {
	t.Parallel()
	content := render(t, linux("bare").Endpoint("a", "a.example").EndpointStatus(healthy("a")),
		linux("port").EndpointWith(v1alpha1.Endpoint{Name: "b", Host: "b.example", Port: 2222}).EndpointStatus(healthy("b")))
	for line := range strings.Lines(content.Data[KeyMachines]) {
		if columns := strings.Split(strings.TrimSuffix(line, "\n"), " "); len(columns) != 8 {
			t.Errorf("line %q has %d columns", line, len(columns))
		}
	}
	if content.Lines != 2 {
		t.Errorf("Lines = %d, want 2", content.Lines)
	}
}

func TestColumn3IsTheSecretInUse(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ credential, want string }{
		"the one the machine accepted":    {"second", "/etc/nix-keys/second/ssh-privatekey"},
		"the first before that is known":  {"", "/etc/nix-keys/first/ssh-privatekey"},
		"the first, if that one has gone": {"third", "/etc/nix-keys/first/ssh-privatekey"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			status := healthy("a")
			status.Credential = tc.credential
			content := render(t, linux("x").Secrets("first", "second").Endpoint("a", "a.example").EndpointStatus(status))
			if got := strings.Fields(content.Data[KeyMachines])[2]; got != tc.want {
				t.Errorf("column 3 is %q, want %q", got, tc.want)
			}
		})
	}
}

func TestDiscoveredMaxJobs(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		endpoint, spec, discovered int32
		disabled                   bool
		want                       string
	}{
		"discovered 0 is written as 1":  {discovered: 0, want: "1"},
		"discovered":                    {discovered: 6, want: "6"},
		"discovered number of a madman": {discovered: 1 << 30, want: "1024"},
		"spec goes first":               {spec: 3, discovered: 6, want: "3"},
		"endpoint goes before spec":     {endpoint: 2, spec: 3, discovered: 6, want: "2"},
		"without discovery":             {discovered: 6, disabled: true, want: "1"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			status := healthy("a")
			status.MaxJobs = tc.discovered
			content := render(t, linux("x").MaxJobs(tc.spec).
				EndpointWith(v1alpha1.Endpoint{Name: "a", Host: "a.example", MaxJobs: tc.endpoint}).
				Change(func(b *v1alpha1.NixBuilder) {
					if tc.disabled {
						b.Spec.Discovery = v1alpha1.DiscoveryDisabled
					}
				}).EndpointStatus(status))
			if got := strings.Fields(content.Data[KeyMachines])[3]; got != tc.want {
				t.Errorf("column 4 is %q, want %q", got, tc.want)
			}
		})
	}
}

func TestDiscoveredSystemsAndFeatures(t *testing.T) {
	t.Parallel()
	status := healthy("a")
	status.Systems = []string{"x86_64-linux", "i686-linux"}
	status.Features = []string{"kvm", "big parallel", "a,b", "c;d", "#e", "-", "benchmark"}
	tests := map[string]struct {
		builder *builders.NixBuilderWrapper
		want    string // columns 2, 6 and 7
	}{
		"taken where absent, without words that no file can hold": {
			builders.MakeNixBuilder("x"), "i686-linux,x86_64-linux benchmark,kvm -",
		},
		"declared ones go first": {
			builders.MakeNixBuilder("x").Systems("x86_64-linux").Features("big-parallel"), "x86_64-linux big-parallel -",
		},
		"not without discovery": {
			builders.MakeNixBuilder("x").Systems("x86_64-linux").MandatoryFeatures("gpu").
				Change(func(b *v1alpha1.NixBuilder) { b.Spec.Discovery = v1alpha1.DiscoveryDisabled }),
			"x86_64-linux - gpu",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			content := render(t, tc.builder.Endpoint("a", "a.example").EndpointStatus(status))
			columns := strings.Fields(content.Data[KeyMachines])
			if got := columns[1] + " " + columns[5] + " " + columns[6]; got != tc.want {
				t.Errorf("systems, features and mandatory features are %q, want %q", got, tc.want)
			}
		})
	}
}

// A system that a canary refuted is not published, whether declared or discovered;
// an endpoint without any other is not listed at all, healthy last or not.
func TestRefutedSystemsAreNotPublished(t *testing.T) {
	t.Parallel()
	refuted, useless := healthy("a"), down("a", time.Minute)
	refuted.Systems, refuted.RefutedSystems = []string{"x86_64-linux"}, []string{"aarch64-linux"}
	useless.RefutedSystems = []string{"x86_64-linux"}
	tests := map[string]struct {
		builder *builders.NixBuilderWrapper
		want    []string
	}{
		"declared":     {builders.MakeNixBuilder("x").Systems("aarch64-linux", "x86_64-linux").Endpoint("a", "a.example").EndpointStatus(refuted), []string{"a.example x86_64-linux"}},
		"discovered":   {builders.MakeNixBuilder("x").Endpoint("a", "a.example").EndpointStatus(refuted), []string{"a.example x86_64-linux"}},
		"the only one": {linux("x").Endpoint("a", "a.example").EndpointStatus(useless), nil},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tc.want, lines(t, render(t, tc.builder))); diff != "" {
				t.Errorf("machines (-want +got):\n%s", diff)
			}
		})
	}
}

// variety is a namespace with a bit of everything.
func variety() []*builders.NixBuilderWrapper {
	pinned := healthy("only")
	pinned.HostKey = builders.HostKey("pinned")
	return []*builders.NixBuilderWrapper{
		linux("linux").Features("kvm", "big-parallel", "benchmark").Secrets("k1", "k2").
			Endpoint("a", "a.example").Endpoint("b", "b.example").
			EndpointWith(v1alpha1.Endpoint{Name: "c", Host: "a.example", Port: 2222, HostKeys: []string{builders.HostKey("c1"), builders.HostKey("c2")}}).
			EndpointStatus(healthy("a")).EndpointStatus(suspect("b")).EndpointStatus(down("c", time.Minute)),
		builders.MakeNixBuilder("mac").Systems("aarch64-darwin", "x86_64-darwin").
			Endpoint("m1", "2001:db8::1").Endpoint("m2", "m2.example").
			EndpointStatus(down("m1", time.Minute)).EndpointStatus(down("m2", 2*time.Minute)).
			Change(func(b *v1alpha1.NixBuilder) {
				b.Spec.HostCertificateAuthorities = []string{builders.HostKey("ca1"), builders.HostKey("ca2")}
			}),
		linux("tofu").Endpoint("only", "t.example").TrustOnFirstUse().EndpointStatus(pinned).
			Cordon("moving", now.Add(time.Hour)),
	}
}

// shuffle puts everything of which the order has no meaning into another.
func shuffle(random *rand.Rand, list []v1alpha1.NixBuilder) {
	random.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	for i := range list {
		spec, status := &list[i].Spec, &list[i].Status
		random.Shuffle(len(spec.Endpoints), func(i, j int) { spec.Endpoints[i], spec.Endpoints[j] = spec.Endpoints[j], spec.Endpoints[i] })
		random.Shuffle(len(status.Endpoints), func(i, j int) {
			status.Endpoints[i], status.Endpoints[j] = status.Endpoints[j], status.Endpoints[i]
		})
		sets := [][]string{spec.Systems, spec.SupportedFeatures, spec.MandatoryFeatures, spec.HostCertificateAuthorities}
		for j := range spec.Endpoints {
			sets = append(sets, spec.Endpoints[j].HostKeys)
		}
		for _, set := range sets {
			random.Shuffle(len(set), func(i, j int) { set[i], set[j] = set[j], set[i] })
		}
	}
}

func TestEqualInputGivesEqualBytes(t *testing.T) {
	t.Parallel()
	want := render(t, variety()...)
	random := rand.New(rand.NewPCG(3, 4))
	for range 100 {
		var list []v1alpha1.NixBuilder
		for _, w := range variety() {
			list = append(list, *accept(w).Obj())
		}
		shuffle(random, list)
		got, err := Desired(list, now)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("the same builders in another order (-first +now):\n%s", diff)
		}
	}
}

func TestDesiredDoesNotChangeItsInput(t *testing.T) {
	t.Parallel()
	var list, before []v1alpha1.NixBuilder
	for _, w := range variety() {
		list = append(list, *accept(w).Obj())
	}
	for i := range list {
		before = append(before, *list[i].DeepCopy())
	}
	if _, err := Desired(list, now); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, list); diff != "" {
		t.Errorf("input (-before +after):\n%s", diff)
	}
}

// Heartbeats and words may change at any time; a ConfigMap may not.
func TestWhatIsNoTransitionIsNotPublished(t *testing.T) {
	t.Parallel()
	want := render(t, variety()...)
	changed := variety()
	for _, w := range changed {
		w.Generation(7).Annotation("note", "x").Change(func(b *v1alpha1.NixBuilder) {
			b.ResourceVersion = "42"
			for i := range b.Status.Endpoints {
				e := &b.Status.Endpoints[i]
				e.Message = "timed out after 9.97 s"
				e.NixVersion, e.ProtocolVersion = "2.34.8", "1.38"
				if e.LastHealthyTime != nil {
					e.LastHealthyTime.Time = e.LastHealthyTime.Add(time.Second)
				}
			}
		})
	}
	if diff := cmp.Diff(want, render(t, changed...)); diff != "" {
		t.Errorf("content (-want +got):\n%s", diff)
	}
}

func BenchmarkDesired(b *testing.B) {
	var list []v1alpha1.NixBuilder
	for i := range 10 {
		w := linux("builder-"+strconv.Itoa(i)).Features("kvm", "big-parallel", "benchmark", "nixos-test")
		for j := range 50 {
			status := healthy("e" + strconv.Itoa(j))
			if j%2 == 0 {
				status = down(status.Name, time.Minute)
			}
			w.Endpoint(status.Name, status.Name+".example").EndpointStatus(status)
		}
		list = append(list, *accept(w).Obj())
	}
	for b.Loop() {
		if _, err := Desired(list, now); err != nil {
			b.Fatal(err)
		}
	}
}
