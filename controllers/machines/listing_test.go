// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/test/builders"
)

type wrapper = builders.NixBuilderWrapper

// failing is down for a reason other than being out of reach.
func failing(name, condition string) v1alpha1.EndpointStatus {
	status := down(name, time.Minute)
	status.FailedCondition = condition
	return status
}

// one is a builder with one endpoint, a at <name>.example.
func one(name string, status v1alpha1.EndpointStatus) *wrapper {
	status.Name = "a"
	return linux(name).Endpoint("a", name+".example").EndpointStatus(status)
}

func TestListed(t *testing.T) {
	t.Parallel()
	never := down("a", 0)
	never.LastHealthyTime = nil
	elsewhere := healthy("a")
	elsewhere.Address = "old.example:22"
	tests := map[string]struct {
		builders []*wrapper
		want     []string
	}{
		"healthy ones only": {
			[]*wrapper{one("up", healthy("")), one("down", down("", time.Minute)), one("new", never)},
			[]string{"up.example x86_64-linux"},
		},
		"suspect stays listed": {
			[]*wrapper{one("up", healthy("")), one("maybe", suspect(""))},
			[]string{"maybe.example x86_64-linux", "up.example x86_64-linux"},
		},
		"suspect alone serves its class": {
			[]*wrapper{one("maybe", suspect("")), one("down", down("", time.Minute))},
			[]string{"maybe.example x86_64-linux"},
		},
		"none healthy: those healthy last stay": {
			[]*wrapper{one("last", down("", time.Hour)), one("same", down("", time.Hour+lastHealthyWindow)), one("older", down("", time.Hour+lastHealthyWindow+time.Second))},
			[]string{"last.example x86_64-linux", "same.example x86_64-linux"},
		},
		"none healthy, however long ago": {
			[]*wrapper{one("last", down("", 1000*time.Hour))},
			[]string{"last.example x86_64-linux"},
		},
		"none healthy: never healthy does not stay": {
			[]*wrapper{one("new", never), one("last", down("", time.Hour))},
			[]string{"last.example x86_64-linux"},
		},
		"each system is a class": {
			[]*wrapper{
				one("x86", healthy("")),
				one("both", down("", time.Minute)).Systems("x86_64-linux", "aarch64-linux"),
			},
			[]string{"both.example aarch64-linux", "x86.example x86_64-linux"},
		},
		"features make a class: the only one with kvm stays": {
			[]*wrapper{one("plain", healthy("")), one("kvm", down("", time.Minute)).Features("kvm")},
			[]string{"kvm.example x86_64-linux", "plain.example x86_64-linux"},
		},
		"a healthy one with more features serves the class too": {
			[]*wrapper{one("more", healthy("")).Features("kvm", "big-parallel"), one("kvm", down("", time.Minute)).Features("kvm")},
			[]string{"more.example x86_64-linux"},
		},
		"mandatory features make a class": {
			[]*wrapper{one("gpu", healthy("")).MandatoryFeatures("gpu"), one("plain", down("", time.Minute)).Features("gpu")},
			[]string{"gpu.example x86_64-linux", "plain.example x86_64-linux"},
		},
		"one that supports what another demands serves its class": {
			[]*wrapper{one("plain", healthy("")).Features("gpu"), one("gpu", down("", time.Minute)).MandatoryFeatures("gpu")},
			[]string{"plain.example x86_64-linux"},
		},
		"exception: a deleted endpoint": {
			[]*wrapper{one("x", down("", time.Minute)).EndpointStatus(down("gone", time.Minute))},
			[]string{"x.example x86_64-linux"},
		},
		"exception: a builder that is being deleted": {
			[]*wrapper{one("x", healthy("")).Change(func(b *v1alpha1.NixBuilder) { b.DeletionTimestamp = ago(0) })},
			nil,
		},
		"exception: cordoned, healthy": {
			[]*wrapper{one("x", healthy("")).Cordon("disk", time.Time{})}, nil,
		},
		"exception: cordoned, healthy last": {
			[]*wrapper{one("x", down("", time.Minute)).Cordon("disk", now.Add(time.Second))}, nil,
		},
		"a cordon that is over": {
			[]*wrapper{one("x", healthy("")).Cordon("disk", now)}, []string{"x.example x86_64-linux"},
		},
		"one endpoint of two cordoned": {
			[]*wrapper{linux("x").
				EndpointWith(v1alpha1.Endpoint{Name: "a", Host: "a.example", Cordon: builders.MakeCordon("disk", time.Time{})}).
				Endpoint("b", "b.example").EndpointStatus(healthy("a")).EndpointStatus(healthy("b"))},
			[]string{"b.example x86_64-linux"},
		},
		"a cordoned healthy one does not serve its class": {
			[]*wrapper{one("up", healthy("")).Cordon("disk", time.Time{}), one("down", down("", time.Minute))},
			[]string{"down.example x86_64-linux"},
		},
		"exception: host key unverified": {
			[]*wrapper{one("x", failing("", v1alpha1.ConditionHostKeyVerified))}, nil,
		},
		"exception: credentials invalid": {
			[]*wrapper{one("x", failing("", v1alpha1.ConditionCredentialsValid))}, nil,
		},
		"no exception: other failures": {
			[]*wrapper{one("x", failing("", v1alpha1.ConditionAuthenticated)), one("y", failing("", v1alpha1.ConditionTrusted))},
			[]string{"x.example x86_64-linux", "y.example x86_64-linux"},
		},
		"not before a host key is known": {
			[]*wrapper{linux("x").Endpoint("a", "x.example").TrustOnFirstUse().EndpointStatus(healthy("a"))}, nil,
		},
		"not before a system is known": {
			[]*wrapper{builders.MakeNixBuilder("x").Endpoint("a", "x.example").EndpointStatus(healthy("a"))}, nil,
		},
		"not by what is known of another address": {
			[]*wrapper{one("x", elsewhere)}, nil,
		},
		"not before the first probe": {
			[]*wrapper{linux("x").Endpoint("a", "x.example")}, nil,
		},
		"not accepted": {
			[]*wrapper{one("x", healthy("")).Condition(v1alpha1.ConditionAccepted, metav1.ConditionFalse, "DuplicateEndpoint")}, nil,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			content := render(t, tc.builders...)
			if diff := cmp.Diff(tc.want, lines(t, content)); diff != "" {
				t.Errorf("hosts and systems (-want +got):\n%s", diff)
			}
			if content.Lines != len(tc.want) {
				t.Errorf("Lines = %d, want %d", content.Lines, len(tc.want))
			}
		})
	}
}

func TestNothingLeftIsOneCommentLine(t *testing.T) {
	t.Parallel()
	content := render(t, one("x", healthy("")).Cordon("disk", time.Time{}))
	text := content.Data[KeyMachines]
	if strings.Count(text, "\n") != 1 || !strings.HasPrefix(text, "# ") || strings.Contains(text, ";") {
		t.Errorf("machines = %q, want one comment line without a semicolon", text)
	}
}

func TestBuildersJSONHasEveryAcceptedEndpoint(t *testing.T) {
	t.Parallel()
	rejected := one("rejected", healthy("")).Condition(v1alpha1.ConditionAccepted, metav1.ConditionFalse, "InvalidKey")
	content := render(t, append(variety(), rejected, linux("new").Endpoint("a", "new.example"))...)
	document, err := inventory.Decode([]byte(content.Data[KeyBuilders]))
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]inventory.State)
	for _, endpoint := range document.Builders {
		got[endpoint.ID()] = endpoint.State
	}
	want := map[string]inventory.State{
		"linux/a": inventory.StateHealthy, "linux/b": inventory.StateSuspect, "linux/c": inventory.StateUnhealthy,
		"mac/m1": inventory.StateUnhealthy, "mac/m2": inventory.StateUnhealthy,
		"tofu/only": inventory.StateHealthy, "new/a": inventory.StateUnknown,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("endpoints (-want +got):\n%s", diff)
	}
}

func TestBuildersJSONEndpoint(t *testing.T) {
	t.Parallel()
	status := down("a", time.Hour)
	status.Message = "connection refused after 3 ms"
	status.Credential = "k2"
	content := render(t, linux("x").Features("kvm").MandatoryFeatures("gpu").Secrets("k2", "k1").MaxJobs(3).
		EndpointWith(v1alpha1.Endpoint{Name: "a", Host: "2001:db8::1", Port: 2222, HostKeys: []string{builders.HostKey("k") + " comment"}}).
		Change(func(b *v1alpha1.NixBuilder) {
			b.Spec.SpeedFactor = 4
			b.Spec.RemoteProgram = "/opt/nix-daemon"
			b.Spec.HostCertificateAuthorities = []string{builders.HostKey("ca")}
		}).
		Cordon("moving", now.Add(time.Hour)).EndpointStatus(status))
	document, err := inventory.Decode([]byte(content.Data[KeyBuilders]))
	if err != nil {
		t.Fatal(err)
	}
	until := now.Add(time.Hour)
	want := []inventory.Endpoint{{
		Builder: "x", Name: "a", Host: "2001:db8::1", Port: 2222, User: "nix",
		HostKeys: []string{builders.HostKey("k")}, CertificateAuthorities: []string{builders.HostKey("ca")},
		Credentials: []string{"k2", "k1"}, RemoteProgram: "/opt/nix-daemon",
		Systems: []string{"x86_64-linux"}, SupportedFeatures: []string{"kvm"}, MandatoryFeatures: []string{"gpu"},
		Slots: 3, SpeedFactor: 4,
		State: inventory.StateUnhealthy, Reason: "ConnectionRefused", Since: now.Add(-time.Hour),
		Cordon: &inventory.Cordon{Reason: "moving", Until: &until},
	}}
	if diff := cmp.Diff(want, document.Builders); diff != "" {
		t.Errorf("endpoints (-want +got):\n%s", diff)
	}
}

func TestExpires(t *testing.T) {
	t.Parallel()
	at := func(d time.Duration) time.Time { return now.Add(d) }
	tests := map[string]struct {
		builders []*wrapper
		want     time.Time
	}{
		"no cordon":                    {[]*wrapper{one("x", healthy(""))}, time.Time{}},
		"for ever":                     {[]*wrapper{one("x", healthy("")).Cordon("r", time.Time{})}, time.Time{}},
		"over":                         {[]*wrapper{one("x", healthy("")).Cordon("r", at(0))}, time.Time{}},
		"the next of two builders'":    {[]*wrapper{one("x", healthy("")).Cordon("r", at(2)), one("y", healthy("")).Cordon("r", at(1))}, at(1)},
		"not of a builder that is out": {[]*wrapper{one("x", healthy("")).Cordon("r", at(2)).Change(func(b *v1alpha1.NixBuilder) { b.DeletionTimestamp = ago(0) })}, time.Time{}},
		"an endpoint's within the builder's": {
			[]*wrapper{linux("x").EndpointWith(v1alpha1.Endpoint{Name: "a", Host: "h", Cordon: builders.MakeCordon("r", at(3))}).Cordon("r", at(5))}, at(3),
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := render(t, tc.builders...).Expires; !got.Equal(tc.want) {
				t.Errorf("Expires = %v, want %v", got, tc.want)
			}
		})
	}
}

// bulky is a builder that takes about 17 KiB for each endpoint.
func bulky(name string, endpoints int) *wrapper {
	w := linux(name)
	for i := range endpoints {
		endpoint := v1alpha1.Endpoint{Name: "e" + strconv.Itoa(i), Host: name + strconv.Itoa(i) + ".example"}
		for k := range 8 {
			// Long enough for a key of 4096 bits, of which only the type is looked at.
			blob := append([]byte("\x00\x00\x00\x07ssh-rsa"), strings.Repeat(strconv.Itoa(k), 800)...)
			endpoint.HostKeys = append(endpoint.HostKeys, "ssh-rsa "+base64.StdEncoding.EncodeToString(blob))
		}
		w.EndpointWith(endpoint).EndpointStatus(healthy(endpoint.Name))
	}
	return w
}

func TestTooLarge(t *testing.T) {
	t.Parallel()
	content := render(t, bulky("b", 50))
	if size := content.Size(); size < MaxContentSize*8/10 || size > MaxContentSize {
		t.Errorf("50 endpoints take %d bytes: the test is not near the limit of %d", size, MaxContentSize)
	}
	// Beyond the limit of a ConfigMap, and beyond that of builders.json.
	for _, builders := range [][]v1alpha1.NixBuilder{
		{*accept(bulky("b", 60)).Obj()},
		{*accept(bulky("b", 64)).Obj(), *accept(bulky("c", 64)).Obj()},
	} {
		if _, err := Desired(builders, now); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%d builders: %v, want ErrTooLarge", len(builders), err)
		}
	}
}
