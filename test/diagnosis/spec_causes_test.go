// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
)

// specCauses are those that are found without looking at the machine.
func specCauses() []cause {
	endpoint := func(change func(*v1alpha1.Endpoint)) func(*patient) {
		return func(p *patient) {
			p.changeSpec(func(spec *v1alpha1.NixBuilderSpec) { change(&spec.Endpoints[0]) })
		}
	}
	back := func(p *patient, _ string) {
		p.changeSpec(func(spec *v1alpha1.NixBuilderSpec) {
			spec.Endpoints[0].Host, spec.Endpoints[0].Port, spec.Endpoints[0].HostKeys = p.IP(), int32(p.Port()), []string{p.HostKey()}
		})
	}
	refused := func(reason string, words ...string) diagnosis {
		return diagnosis{condition: v1alpha1.ConditionAccepted, reason: reason, words: words, state: v1alpha1.EndpointUnknown}
	}
	return []cause{
		{
			name: "duplicate", title: "Another builder has the same machine",
			means:   "More builds could run on it than it has slots, if both were used.",
			mend:    "Remove the machine from one of the two. The older builder goes on.",
			prepare: olderSpare,
			breaks: func(p *patient) {
				spare := p.site.spare
				endpoint(func(e *v1alpha1.Endpoint) {
					e.Host, e.Port, e.HostKeys = spare.IP(), int32(spare.Port()), []string{spare.HostKey()}
				})(p)
			},
			want:   refused("DuplicateEndpoint", "endpoint spare-1 of NixBuilder spare, which is older"),
			remedy: back,
		},
		{
			name: "bad-host", title: "The host is no address",
			mend:   "Write a DNS name or an IP address into `spec.endpoints[].host`.",
			breaks: endpoint(func(e *v1alpha1.Endpoint) { e.Host = "1:2:3" }),
			want:   refused("InvalidHost", "1:2:3"),
			remedy: back,
		},
		{
			name: "bad-host-key", title: "A host key is no public key",
			means:  "It looks like one, but has been cut short or changed.",
			mend:   "Take the line anew from `/etc/ssh/ssh_host_ed25519_key.pub` on the machine.",
			breaks: endpoint(func(e *v1alpha1.Endpoint) { e.HostKeys = []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICeVQ"} }),
			want:   refused("InvalidKey", "hostKeys"),
			remedy: back,
		},
		{
			name: "cordoned", title: "All machines are cordoned",
			means: "Somebody wants it so. Running builds finish; machines are probed all the same.",
			mend:  "`kubectl nixbuilder uncordon linux`, or take `spec.cordon` out of the spec; it also ends by itself at `until`.",
			breaks: func(p *patient) {
				p.changeSpec(func(spec *v1alpha1.NixBuilderSpec) { spec.Cordon = &v1alpha1.Cordon{Reason: "new disk"} })
			},
			want: diagnosis{
				condition: v1alpha1.ConditionCordoned, status: metav1.ConditionTrue, reason: "Cordoned", words: []string{"new disk"},
				state: v1alpha1.EndpointHealthy, quiet: true,
			},
			remedy: func(p *patient, _ string) {
				p.changeSpec(func(spec *v1alpha1.NixBuilderSpec) { spec.Cordon = nil })
			},
		},
	}
}

// olderSpare waits until a builder that is declared now is younger than the spare one:
// times of creation are in seconds, and of equals the name decides.
func olderSpare(p *patient) {
	p.Helper()
	var spare v1alpha1.NixBuilder
	key := p.key()
	key.Name = spareName
	if err := p.site.Get(p.Context(), key, &spare); err != nil {
		p.Fatal(err)
	}
	for !time.Now().After(spare.CreationTimestamp.Add(time.Second)) {
		time.Sleep(polling)
	}
}
