// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/controllers/machines"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// foreign is a system that no machine of these tests builds for.
const foreign = "riscv64-linux"

// systemsCauses are about declared systems and features that the builder does not
// confirm. None takes the machine out of use.
func systemsCauses() []cause {
	return []cause{
		{
			name: "system-doubtful", title: "A declared system is not in the builder's configuration",
			means: "The configuration is that of the user's own processes, not of the daemon, so it proves nothing, and the system stays in the machines file. " +
				"With `spec.probe.canary: Enabled`, a tiny build for it decides.",
			mend:   "Correct `spec.systems`, or `extra-platforms` in the machine's nix.conf.",
			breaks: declareForeign,
			want: diagnosis{
				condition: v1alpha1.ConditionSystemsVerified, status: metav1.ConditionUnknown, reason: "SystemsNotConfirmed",
				words: []string{"declared system " + foreign, "correct spec.systems, or extra-platforms"},
				state: v1alpha1.EndpointHealthy, listed: true, ready: true, quiet: true,
			},
			remedy: func(p *patient, _ string) {
				p.expectLine(1, nixlab.System(), foreign)
				p.run("echo extra-platforms = " + foreign + " >>/etc/nix/nix.conf")
				p.request()
				p.awaitVerified()
			},
		},
		featureDoubtful("feature-doubtful", "A declared feature is not in the builder's configuration", "big-parallel", "or system-features in its nix.conf"),
		featureDoubtful("feature-kvm", "kvm is declared, and only the daemon sees it", "kvm", "the daemon may have it all the same"),
	}
}

func featureDoubtful(name, title, feature string, words ...string) cause {
	return cause{
		name: name, title: title,
		means: "The configuration is that of the user's own processes, not of the daemon, so it proves nothing, and the feature stays in the machines file.",
		mend:  "Correct `spec.supportedFeatures` or `spec.mandatoryFeatures`, or `system-features` in the machine's nix.conf.",
		breaks: func(p *patient) {
			p.changeSpec(func(spec *v1alpha1.NixBuilderSpec) { spec.SupportedFeatures = []string{feature} })
		},
		want: diagnosis{
			condition: v1alpha1.ConditionSystemsVerified, status: metav1.ConditionUnknown, reason: "FeaturesNotConfirmed",
			words: append([]string{"declared feature " + feature}, words...),
			state: v1alpha1.EndpointHealthy, listed: true, ready: true, quiet: true,
		},
		remedy: func(p *patient, _ string) {
			p.expectLine(5, feature)
			p.run("echo system-features = " + feature + " >>/etc/nix/nix.conf")
			p.request()
			p.awaitVerified()
		},
	}
}

func declareForeign(p *patient) {
	p.changeSpec(func(spec *v1alpha1.NixBuilderSpec) { spec.Systems = []string{nixlab.System(), foreign} })
}

// expectLine checks a column of the patient's line in the machines file, counted from
// 0: the names that stand there. The line of the other builder is not it.
func (p *patient) expectLine(column int, want ...string) {
	p.Helper()
	slices.Sort(want)
	wanted := strings.Join(want, ",")
	p.await(fmt.Sprintf("listed with %s", wanted), v1alpha1.ConditionSystemsVerified, func(vitals) bool {
		for _, columns := range p.lines() {
			if strings.Contains(columns[0], "@"+p.IP()) {
				got := strings.Split(columns[column], ",")
				slices.Sort(got)
				return strings.Join(got, ",") == wanted
			}
		}
		return false
	})
}

// lines reads the machines file: the columns of each machine.
func (p *patient) lines() [][]string {
	p.Helper()
	var file corev1.ConfigMap
	if err := p.site.Get(p.Context(), client.ObjectKey{Namespace: p.namespace, Name: machines.ConfigMapName}, &file); err != nil {
		p.Fatal(err)
	}
	var lines [][]string
	for line := range strings.Lines(file.Data[machines.KeyMachines]) {
		if columns := strings.Fields(line); len(columns) == 8 && strings.HasPrefix(line, "ssh-ng://") {
			lines = append(lines, columns)
		}
	}
	return lines
}

// forget has the operator not know any more what the builder said it offers.
func (p *patient) forget() {
	p.Helper()
	p.changeSpec(func(spec *v1alpha1.NixBuilderSpec) { spec.Discovery = v1alpha1.DiscoveryDisabled })
	p.await("not asked", v1alpha1.ConditionSystemsVerified, func(v vitals) bool {
		return v.condition.Status == metav1.ConditionUnknown && v.condition.Reason == "DiscoveryDisabled"
	})
	p.changeSpec(func(spec *v1alpha1.NixBuilderSpec) { spec.Discovery = v1alpha1.DiscoveryEnabled })
}
