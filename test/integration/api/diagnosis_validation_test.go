// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package api

import (
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"nixbuilder.io/nix-builder-operator/test/builders"
)

var _ = Describe("Validation of how builders are reached and diagnosed", func() {
	key := builders.HostKey("other")
	jump := func(more string) change {
		return change{"spec.proxyJump", "{host: jump.example.com, hostKeys: ['" + key + "']" + more + "}"}
	}
	thresholds := func(text string) change { return change{"spec.thresholds", "{" + text + "}"} }

	DescribeTable("accepts", func(ctx SpecContext, changes ...change) {
		Expect(create(ctx, changes)).To(Succeed())
	},
		Entry("no thresholds at all", thresholds("")),
		Entry("room in gibibytes", thresholds("minFreeSpace: 20Gi")),
		Entry("room in bytes", thresholds("minFreeSpace: 1000000000")),
		Entry("a fraction of room", thresholds("minFreeSpace: 0.5Gi")),
		Entry("no room needed", thresholds("minFreeSpace: 0")),
		Entry("no room needed, as text", thresholds(`minFreeSpace: "0"`)),
		Entry("the lowest thresholds", thresholds("maxLoadPercent: 1, maxCPUPressurePercent: 1, maxMemoryPressurePercent: 1, maxIOPressurePercent: 1, maxClockSkewSeconds: 1")),
		Entry("the highest thresholds", thresholds("maxLoadPercent: 100000, maxCPUPressurePercent: 100, maxMemoryPressurePercent: 100, maxIOPressurePercent: 100, maxClockSkewSeconds: 315360000")),
		Entry("a kept connection", change{"spec.probe", "{keptConnection: Enabled}"}),
		Entry("no kept connection", change{"spec.probe", "{keptConnection: Disabled}"}),
		Entry("a jump host", jump("")),
		Entry("a jump host with everything", jump(", port: 2222, user: jump, hostCertificateAuthorities: ['"+key+"'], credentials: {secretRefs: [{name: jump-key}]}")),
		Entry("a jump host with an authority alone", change{"spec.proxyJump", "{host: 192.0.2.1, hostCertificateAuthorities: ['" + key + "']}"}),
		Entry("a jump host with 8 keys", change{"spec.proxyJump", "{host: j, hostKeys: " + listOf(8, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI%d") + "}"}),
		Entry("cordons of builder and endpoint", change{"spec.cordon", "{reason: a}"}, change{"spec.endpoints.cordon", `{reason: b, until: "2030-01-01T00:00:00Z"}`}),
	)

	DescribeTable("refuses", func(ctx SpecContext, wantField, wantMessage string, changes ...change) {
		err := create(ctx, changes)
		Expect(apierrors.IsInvalid(err)).To(BeTrue(), "error: %v", err)
		Expect(err).To(MatchError(And(ContainSubstring(wantField+": "), ContainSubstring(wantMessage))))
	},
		Entry("room that is negative", "spec.thresholds.minFreeSpace", "must be a number of bytes that is not negative, such as 20Gi", thresholds("minFreeSpace: -1")),
		Entry("room that is negative, as text", "spec.thresholds.minFreeSpace", "must be a number of bytes that is not negative, such as 20Gi", thresholds("minFreeSpace: -1Gi")),
		Entry("room that is no quantity", "spec.thresholds.minFreeSpace", "should match", thresholds("minFreeSpace: plenty")),
		Entry("a load that is 0", "spec.thresholds.maxLoadPercent", "greater than or equal to 1", thresholds("maxLoadPercent: 0")),
		Entry("a load that is too high", "spec.thresholds.maxLoadPercent", "less than or equal to 100000", thresholds("maxLoadPercent: 100001")),
		Entry("a pressure of 0", "spec.thresholds.maxCPUPressurePercent", "greater than or equal to 1", thresholds("maxCPUPressurePercent: 0")),
		Entry("a pressure above 100", "spec.thresholds.maxMemoryPressurePercent", "less than or equal to 100", thresholds("maxMemoryPressurePercent: 101")),
		Entry("a broken pressure", "spec.thresholds.maxIOPressurePercent", "must be of type integer", thresholds("maxIOPressurePercent: 0.5")),
		Entry("a clock that must be exact", "spec.thresholds.maxClockSkewSeconds", "greater than or equal to 1", thresholds("maxClockSkewSeconds: 0")),
		Entry("a clock that is ten years off", "spec.thresholds.maxClockSkewSeconds", "less than or equal to 315360000", thresholds("maxClockSkewSeconds: 315360001")),
		Entry("an unknown kept connection", "spec.probe.keptConnection", `supported values: "Disabled", "Enabled"`, change{"spec.probe", "{keptConnection: Maybe}"}),

		Entry("a jump host without a host", "spec.proxyJump.host", "Required value", change{"spec.proxyJump", "{hostKeys: ['" + key + "']}"}),
		Entry("a jump host with a port in its name", "spec.proxyJump.host", "the port has a field of its own", change{"spec.proxyJump", "{host: 'jump:22', hostKeys: ['" + key + "']}"}),
		Entry("a jump host with a user in its name", "spec.proxyJump.host", "must be a DNS name", change{"spec.proxyJump", "{host: me@jump, hostKeys: ['" + key + "']}"}),
		Entry("a jump host that is an option to ssh", "spec.proxyJump.host", "must be a DNS name", change{"spec.proxyJump", "{host: -oProxyCommand=x, hostKeys: ['" + key + "']}"}),
		Entry("a jump host that proves nothing", "spec.proxyJump", "needs hostKeys or hostCertificateAuthorities", change{"spec.proxyJump", "{host: jump}"}),
		Entry("a jump host with empty lists", "spec.proxyJump", "needs hostKeys or hostCertificateAuthorities", change{"spec.proxyJump", "{host: jump, hostKeys: [], hostCertificateAuthorities: []}"}),
		Entry("a jump host's fingerprint", "spec.proxyJump.hostKeys[0]", "must be one public key", change{"spec.proxyJump", "{host: jump, hostKeys: ['SHA256:kFyy0SJjYc0Jv0ZpyFzIZ2bWzGb4y1L4cvWcrVn1dQo']}"}),
		Entry("9 keys of a jump host", "spec.proxyJump.hostKeys", "must have at most 8 items", change{"spec.proxyJump", "{host: j, hostKeys: " + listOf(9, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI%d") + "}"}),
		Entry("9 authorities of a jump host", "spec.proxyJump.hostCertificateAuthorities", "must have at most 8 items", change{"spec.proxyJump", "{host: j, hostCertificateAuthorities: " + listOf(9, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI%d") + "}"}),
		Entry("port 0 of a jump host", "spec.proxyJump.port", "greater than or equal to 1", jump(", port: 0")),
		Entry("port 65536 of a jump host", "spec.proxyJump.port", "less than or equal to 65535", jump(", port: 65536")),
		Entry("a jump host's user that is an option", "spec.proxyJump.user", "must be an account name", jump(", user: -l")),
		Entry("a jump host's user that is too long", "spec.proxyJump.user", "may not be more than 64", jump(", user: "+strings.Repeat("a", 65))),
		Entry("a jump host without Secrets", "spec.proxyJump.credentials.secretRefs", "should have at least 1 items", jump(", credentials: {secretRefs: []}")),
		Entry("a jump host with 5 Secrets", "spec.proxyJump.credentials.secretRefs", "must have at most 4 items", jump(", credentials: {secretRefs: "+listOf(5, "{name: key-%d}")+"}")),
		Entry("a jump host's Secret of another namespace", "spec.proxyJump.credentials.secretRefs[0].name", "must be the name of a Secret", jump(", credentials: {secretRefs: [{name: ../other}]}")),
		Entry("a cordon of an endpoint without a reason", "spec.endpoints[0].cordon.reason", "Required value", change{"spec.endpoints.cordon", "{}"}),
		Entry("a cordon of an endpoint that ends at no time", "spec.endpoints[0].cordon.until", "must be of type date-time", change{"spec.endpoints.cordon", "{reason: x, until: soon}"}),
	)

	It("fills in what is absent", func(ctx SpecContext) {
		object := valid()
		set(object, "spec.proxyJump", "{host: jump.example.com, hostKeys: ['"+key+"']}")
		Expect(apiServer.Create(withTimeout(ctx), object)).To(Succeed())
		field := func(path ...string) any {
			value, _, err := unstructured.NestedFieldNoCopy(object.Object, path...)
			Expect(err).NotTo(HaveOccurred())
			return value
		}
		Expect(field("spec", "thresholds")).To(Equal(map[string]any{"minFreeSpace": "1Gi", "maxClockSkewSeconds": int64(300)}))
		Expect(field("spec", "probe", "keptConnection")).To(Equal("Enabled"))
		Expect(field("spec", "proxyJump", "port")).To(Equal(int64(22)))
		Expect(field("spec", "proxyJump", "user")).To(BeNil())
	})
})
