// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package api

import (
	"fmt"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"nixbuilder.io/nix-builder-operator/test/builders"
)

// parse makes an object of YAML, untyped: the Go types could not even hold
// some of the values that the API server has to refuse.
func parse(text string) *unstructured.Unstructured {
	GinkgoHelper()
	object := &unstructured.Unstructured{}
	Expect(yaml.Unmarshal([]byte(text), &object.Object)).To(Succeed(), "YAML: %s", text)
	return object
}

// valid is a NixBuilder that the API server accepts, before a test changes it.
func valid() *unstructured.Unstructured {
	return parse(fmt.Sprintf(`
apiVersion: nixbuilder.io/v1alpha1
kind: NixBuilder
metadata:
  generateName: validation-
  namespace: default
spec:
  user: nix
  endpoints:
  - name: a
    host: a.example.com
    hostKeys: [%s]
  credentials:
    secretRefs:
    - name: builder-key
`, builders.HostKey("a")))
}

// endpoints returns YAML of n endpoints that differ in name and host.
func endpoints(n int) string {
	var text strings.Builder
	for i := range n {
		fmt.Fprintf(&text, "- {name: e%d, host: e%d.example.com, hostKeys: [%s]}\n", i, i, builders.HostKey("a"))
	}
	return text.String()
}

// listOf returns YAML of a list of n items made from a format with one %d.
func listOf(n int, format string) string {
	items := make([]string, n)
	for i := range items {
		items[i] = fmt.Sprintf(format, i)
	}
	return "[" + strings.Join(items, ", ") + "]"
}

// set changes a field of the object: path is separated by dots, an empty value
// removes the field, any other is YAML.
func set(object *unstructured.Unstructured, path, value string) {
	GinkgoHelper()
	fields := strings.Split(path, ".")
	parent := object.Object
	for _, field := range fields[:len(fields)-1] {
		switch next := parent[field].(type) {
		case map[string]any:
			parent = next
		case []any: // a list stands for its first item
			parent = next[0].(map[string]any)
		default:
			created := map[string]any{}
			parent[field] = created
			parent = created
		}
	}
	last := fields[len(fields)-1]
	if value == "" {
		delete(parent, last)
		return
	}
	var decoded any
	Expect(yaml.Unmarshal([]byte(value), &decoded)).To(Succeed(), "YAML: %s", value)
	parent[last] = decoded
}

// change is a field and the value that a test gives it.
type change struct{ path, value string }

func create(ctx SpecContext, changes []change) error {
	GinkgoHelper()
	object := valid()
	for _, c := range changes {
		set(object, c.path, c.value)
	}
	return apiServer.Create(withTimeout(ctx), object)
}

var _ = Describe("Validation of NixBuilder", func() {
	key := builders.HostKey("other")

	DescribeTable("accepts", func(ctx SpecContext, changes ...change) {
		Expect(create(ctx, changes)).To(Succeed())
	},
		Entry("the base of the other cases"),

		Entry("64 endpoints", change{"spec.endpoints", endpoints(64)}),
		Entry("a name of 63 characters", change{"spec.endpoints.name", strings.Repeat("a", 63)}),
		Entry("a DNS name", change{"spec.endpoints.host", "mac-1.fleet.example.com"}),
		Entry("a DNS name with digits at its end", change{"spec.endpoints.host", "mac1"}),
		Entry("an IPv4 address", change{"spec.endpoints.host", "192.0.2.7"}),
		Entry("an IPv6 address", change{"spec.endpoints.host", `"2001:db8::7"`}),
		Entry("the lowest port", change{"spec.endpoints.port", "1"}),
		Entry("the highest port", change{"spec.endpoints.port", "65535"}),
		Entry("8 host keys", change{"spec.endpoints.hostKeys", listOf(8, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI%d root@mac")}),
		Entry("an ECDSA host key", change{"spec.endpoints.hostKeys", "[ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTY=]"}),
		Entry("an RSA host key", change{"spec.endpoints.hostKeys", "[ssh-rsa AAAAB3NzaC1yc2E==]"}),
		Entry("jobs of an endpoint", change{"spec.endpoints.maxJobs", "1024"}),
		Entry("one host twice, on two ports", change{"spec.endpoints", "[{name: a, host: x, hostKeys: ['" + key + "']}, {name: b, host: x, port: 2222, hostKeys: ['" + key + "']}]"}),

		Entry("a user with every allowed character", change{"spec.user", "nix_Builder-1.x"}),
		Entry("systems", change{"spec.systems", "[x86_64-linux, aarch64-darwin, x86_64-v3-linux]"}),
		Entry("32 systems", change{"spec.systems", listOf(32, "x%d-linux")}),
		Entry("the most jobs", change{"spec.maxJobs", "1024"}),
		Entry("the highest speed factor", change{"spec.speedFactor", "10000"}),
		Entry("features", change{"spec.supportedFeatures", "[kvm, big-parallel, gccarch-x86-64-v3, c++20]"}),
		Entry("32 features", change{"spec.supportedFeatures", listOf(32, "f%d")}),
		Entry("mandatory features", change{"spec.mandatoryFeatures", "[benchmark]"}),
		Entry("32 mandatory features", change{"spec.mandatoryFeatures", listOf(32, "f%d")}),

		Entry("no discovery with systems", change{"spec.discovery", "Disabled"}, change{"spec.systems", "[x86_64-linux]"}),
		Entry("4 Secrets", change{"spec.credentials.secretRefs", listOf(4, "{name: key.%d}")}),
		Entry("trust on first use without host keys", change{"spec.hostKeyPolicy", "TrustOnFirstUse"}, change{"spec.endpoints.hostKeys", ""}),
		Entry("strict with an authority in place of host keys", change{"spec.hostCertificateAuthorities", "['" + key + "']"}, change{"spec.endpoints.hostKeys", ""}),
		Entry("8 authorities", change{"spec.hostCertificateAuthorities", listOf(8, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI%d")}),
		Entry("a remote program", change{"spec.remoteProgram", "/nix/var/nix/profiles/default/bin/nix-daemon"}),

		Entry("a timeout as long as the interval", change{"spec.probe", "{intervalSeconds: 10}"}),
		Entry("the shortest interval", change{"spec.probe", "{intervalSeconds: 5, timeoutSeconds: 1}"}),
		Entry("the longest interval", change{"spec.probe", "{intervalSeconds: 3600, timeoutSeconds: 300}"}),
		Entry("the lowest threshold", change{"spec.probe", "{failureThreshold: 1}"}),
		Entry("the highest threshold", change{"spec.probe", "{failureThreshold: 20}"}),
		Entry("a canary", change{"spec.probe", "{canary: Enabled}"}),

		Entry("a cordon", change{"spec.cordon", "{reason: moving house}"}),
		Entry("a cordon with an end", change{"spec.cordon", `{reason: "Umzug läuft", until: "2030-01-01T00:00:00Z"}`}),
		Entry("a cordon of an endpoint", change{"spec.endpoints.cordon", "{reason: new disk}"}),
	)

	DescribeTable("refuses", func(ctx SpecContext, wantMessage string, changes ...change) {
		err := create(ctx, changes)
		Expect(apierrors.IsInvalid(err)).To(BeTrue(), "error: %v", err)
		Expect(err).To(MatchError(ContainSubstring(wantMessage)))
	},
		Entry("no endpoints", "should have at least 1 items", change{"spec.endpoints", "[]"}),
		Entry("65 endpoints", "must have at most 64 items", change{"spec.endpoints", endpoints(65)}),
		Entry("missing endpoints", "spec.endpoints: Required value", change{"spec.endpoints", ""}),
		Entry("a name twice", "Duplicate value", change{"spec.endpoints", "[{name: a, host: x, hostKeys: ['" + key + "']}, {name: a, host: z, hostKeys: ['" + key + "']}]"}),
		Entry("a name that is no label", "must be a DNS label", change{"spec.endpoints.name", "mac.1"}),
		Entry("a name that is too long", "may not be more than 63", change{"spec.endpoints.name", strings.Repeat("a", 64)}),
		Entry("no host", "host: Required value", change{"spec.endpoints.host", ""}),
		Entry("a host with a port", "must be a DNS name in lower case, an IPv4 address or an IPv6 address", change{"spec.endpoints.host", "a.example.com:22"}),
		Entry("a host with a user", "must be a DNS name", change{"spec.endpoints.host", "nix@a.example.com"}),
		Entry("a host in upper case", "must be a DNS name", change{"spec.endpoints.host", "A.example.com"}),
		Entry("an impossible IPv4 address", "must be a DNS name", change{"spec.endpoints.host", "192.0.2.256"}),
		Entry("an IPv6 address in brackets", "must be a DNS name", change{"spec.endpoints.host", `"[2001:db8::7]"`}),
		Entry("a host that is an option to ssh", "must be a DNS name", change{"spec.endpoints.host", "-oProxyCommand=x"}),
		Entry("port 0", "greater than or equal to 1", change{"spec.endpoints.port", "0"}),
		Entry("port 65536", "less than or equal to 65535", change{"spec.endpoints.port", "65536"}),
		Entry("9 host keys", "must have at most 8 items", change{"spec.endpoints.hostKeys", listOf(9, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI%d")}),
		Entry("a host key twice", "Duplicate value", change{"spec.endpoints.hostKeys", "['" + key + "', '" + key + "']"}),
		Entry("a host key with a host name", "without a host name before it", change{"spec.endpoints.hostKeys", "['a.example.com " + key + "']"}),
		Entry("a host key of two lines", "must be one public key in one line", change{"spec.endpoints.hostKeys", `["` + key + `\n"]`}),
		Entry("a fingerprint for a host key", "must be one public key", change{"spec.endpoints.hostKeys", "['SHA256:kFyy0SJjYc0Jv0ZpyFzIZ2bWzGb4y1L4cvWcrVn1dQo']"}),
		Entry("jobs 0 of an endpoint", "greater than or equal to 1", change{"spec.endpoints.maxJobs", "0"}),
		Entry("too many jobs of an endpoint", "less than or equal to 1024", change{"spec.endpoints.maxJobs", "1025"}),
		Entry("host and port twice", "host and port must differ between endpoints", change{"spec.endpoints", "[{name: a, host: x, hostKeys: ['" + key + "']}, {name: b, host: x, port: 22, hostKeys: ['" + key + "']}]"}),

		Entry("no user", "spec.user: Required value", change{"spec.user", ""}),
		Entry("a user that is an option to ssh", "must be an account name", change{"spec.user", "-l"}),
		Entry("a user with a space", "must be an account name", change{"spec.user", "nix builder"}),
		Entry("a user that is too long", "may not be more than 64", change{"spec.user", strings.Repeat("a", 65)}),
		Entry("a system with a comma", "must be a Nix system", change{"spec.systems", `["x86_64-linux,i686-linux"]`}),
		Entry("a system of one part", "must be a Nix system", change{"spec.systems", "[linux]"}),
		Entry("a system twice", "Duplicate value", change{"spec.systems", "[x86_64-linux, x86_64-linux]"}),
		Entry("33 systems", "must have at most 32 items", change{"spec.systems", listOf(33, "x%d-linux")}),
		Entry("0 jobs", "greater than or equal to 1", change{"spec.maxJobs", "0"}),
		Entry("too many jobs", "less than or equal to 1024", change{"spec.maxJobs", "1025"}),
		Entry("speed factor 0", "greater than or equal to 1", change{"spec.speedFactor", "0"}),
		Entry("a broken speed factor", "must be of type integer", change{"spec.speedFactor", "1.5"}),
		Entry("too high a speed factor", "less than or equal to 10000", change{"spec.speedFactor", "10001"}),
		Entry("a feature with a space", "without spaces or commas", change{"spec.supportedFeatures", "[big parallel]"}),
		Entry("a feature with a comma", "without spaces or commas", change{"spec.supportedFeatures", `["kvm,benchmark"]`}),
		Entry("a feature twice", "Duplicate value", change{"spec.supportedFeatures", "[kvm, kvm]"}),
		Entry("33 features", "must have at most 32 items", change{"spec.supportedFeatures", listOf(33, "f%d")}),
		Entry("a mandatory feature that is a dash", "without spaces or commas", change{"spec.mandatoryFeatures", `["-"]`}),
		Entry("33 mandatory features", "must have at most 32 items", change{"spec.mandatoryFeatures", listOf(33, "f%d")}),

		Entry("an unknown discovery", `supported values: "Enabled", "Disabled"`, change{"spec.discovery", "Off"}),
		Entry("no discovery without systems", "with discovery Disabled systems must list at least one system", change{"spec.discovery", "Disabled"}),
		Entry("no credentials", "spec.credentials: Required value", change{"spec.credentials", ""}),
		Entry("no Secrets", "should have at least 1 items", change{"spec.credentials.secretRefs", "[]"}),
		Entry("5 Secrets", "must have at most 4 items", change{"spec.credentials.secretRefs", listOf(5, "{name: key-%d}")}),
		Entry("a Secret twice", "Duplicate value", change{"spec.credentials.secretRefs", "[{name: a}, {name: a}]"}),
		Entry("a Secret of another namespace", "must be the name of a Secret", change{"spec.credentials.secretRefs", "[{name: ../other}]"}),
		Entry("an unknown host key policy", `supported values: "Strict", "TrustOnFirstUse"`, change{"spec.hostKeyPolicy", "Ignore"}),
		Entry("strict without host keys", "with hostKeyPolicy Strict every endpoint needs hostKeys", change{"spec.endpoints.hostKeys", ""}),
		Entry("strict with host keys for one of two", "with hostKeyPolicy Strict every endpoint needs hostKeys", change{"spec.endpoints", "[{name: a, host: x, hostKeys: ['" + key + "']}, {name: b, host: z, hostKeys: []}]"}),
		Entry("an authority that is no key", "the content of the authority's .pub file", change{"spec.hostCertificateAuthorities", "['@cert-authority * " + key + "']"}),
		Entry("9 authorities", "must have at most 8 items", change{"spec.hostCertificateAuthorities", listOf(9, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI%d")}),
		Entry("a relative remote program", "must be an absolute path", change{"spec.remoteProgram", "nix-daemon"}),
		Entry("a remote program with a shell's characters", "must be an absolute path", change{"spec.remoteProgram", `"/bin/nix-daemon; id"`}),

		Entry("a timeout longer than the interval", "timeoutSeconds must not be more than intervalSeconds", change{"spec.probe", "{intervalSeconds: 9}"}),
		Entry("too short an interval", "greater than or equal to 5", change{"spec.probe", "{intervalSeconds: 4, timeoutSeconds: 1}"}),
		Entry("too long an interval", "less than or equal to 3600", change{"spec.probe", "{intervalSeconds: 3601}"}),
		Entry("no timeout", "greater than or equal to 1", change{"spec.probe", "{timeoutSeconds: 0}"}),
		Entry("too long a timeout", "less than or equal to 300", change{"spec.probe", "{intervalSeconds: 3600, timeoutSeconds: 301}"}),
		Entry("threshold 0", "greater than or equal to 1", change{"spec.probe", "{failureThreshold: 0}"}),
		Entry("too high a threshold", "less than or equal to 20", change{"spec.probe", "{failureThreshold: 21}"}),
		Entry("an unknown canary", `supported values: "Disabled", "Enabled"`, change{"spec.probe", "{canary: Maybe}"}),

		Entry("a cordon without a reason", "spec.cordon.reason: Required value", change{"spec.cordon", "{}"}),
		Entry("a cordon with a reason of two lines", "must be one line of text", change{"spec.cordon", `{reason: "a\nb"}`}),
		Entry("a cordon with too long a reason", "may not be more than 256", change{"spec.cordon", "{reason: " + strings.Repeat("a", 257) + "}"}),
		Entry("a cordon that ends at no time", "must be of type date-time", change{"spec.cordon", "{reason: x, until: tomorrow}"}),
	)
})
