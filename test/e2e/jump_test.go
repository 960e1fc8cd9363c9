// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package e2e_test

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/controllers/machines"
	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/test/bench/netline"
	"nixbuilder.io/nix-builder-operator/test/builders"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

const (
	// jumpSecret names the key for the jump host, which takes no other.
	jumpSecret = "jump-key"
	jumpUser   = nixlab.UntrustedUser
	// jumpKeys are the keys that it takes, where they outlast a restart.
	jumpKeys = "/nix/jump_keys"
)

// Clients and dispatcher are here, the builder is in another network, and only the jump
// host is reached from here.
var _ = Describe("A builder behind a jump host", Ordered, func() {
	var (
		jump, far *nixlab.Builder
		address   inventory.Jump // of the jump host, from here
		keys      string         // directory of the keys
	)
	BeforeAll(func(ctx context.Context) {
		network, err := netline.NewNamespace()
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(network.Close)
		far = newBuilder(ctx, nixlab.BuilderOptions{Name: "jump-far", Namespace: network.Path(), Address: "127.77.0.2"})
		jump = newBuilder(ctx, nixlab.BuilderOptions{
			Name: "jump-host", Namespace: network.Path(), Address: "127.77.0.1", Port: 2222,
			SSHDConfig: "AllowTcpForwarding local\nForceCommand /usr/sbin/nologin\nPermitTTY no\nMatch User " + jumpUser +
				"\nAuthorizedKeysFile none\nAuthorizedKeysCommandUser root\nAuthorizedKeysCommand /bin/cat " + jumpKeys,
		})
		connection, err := net.Dial("tcp", far.Address())
		if err == nil {
			connection.Close()
		}
		Expect(err).To(HaveOccurred(), "the builder can be reached from here")
		link, err := lab.NewLinkThrough(jump.Address(), func(ctx context.Context, address string) (conn net.Conn, err error) {
			err = network.Do(func() (err error) {
				conn, err = new(net.Dialer).DialContext(ctx, "tcp", address)
				return err
			})
			return conn, err
		})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(link.Close) // it dials in the network
		host, port, err := net.SplitHostPort(link.Address())
		Expect(err).NotTo(HaveOccurred())
		number, err := strconv.Atoi(port)
		Expect(err).NotTo(HaveOccurred())
		address = inventory.Jump{Host: host, Port: number, User: jumpUser, HostKeys: []string{jump.HostKey()}, Credentials: []string{jumpSecret}}

		keys = GinkgoT().TempDir()
		for _, secret := range []string{"lab", jumpSecret} {
			Expect(os.Mkdir(filepath.Join(keys, secret), 0o700)).To(Succeed())
		}
		key, err := os.ReadFile(lab.ClientKeyFile())
		Expect(err).NotTo(HaveOccurred())
		Expect(os.WriteFile(filepath.Join(keys, "lab", "ssh-privatekey"), key, 0o600)).To(Succeed())
		file := filepath.Join(keys, jumpSecret, "ssh-privatekey")
		output, err := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file).CombinedOutput()
		Expect(err).NotTo(HaveOccurred(), string(output))
		admitTo(jump, file, far)
	}, NodeTimeout(specTimeout))

	It("builds for stock Nix by the ConfigMap's files", func(ctx context.Context) {
		content, err := machines.Desired([]v1alpha1.NixBuilder{*siteObject(far, address)}, time.Now())
		Expect(err).NotTo(HaveOccurred())
		for _, version := range nixlab.Versions() {
			name := "jumped-" + slug(version)
			client := newDirectClient(ctx, name+"-c", version, content, keys)
			command, err := client.Command(ctx, "root", []string{"NIX_SSHOPTS=-F " + machines.MountPath + "/" + machines.KeySSHConfig},
				"nix-build", "--no-out-link", "--expr", nixlab.Trivial(name))
			Expect(err).NotTo(HaveOccurred())
			var stdout, stderr bytes.Buffer
			command.Stdout, command.Stderr = &stdout, &stderr
			Expect(command.Run()).To(Succeed(), "Nix %s says:\n%s", nixVersions[version], &stderr)
			Expect(strings.TrimSpace(stdout.String())).To(MatchRegexp(built(name)))
			Expect(mustList(far)).To(ContainElement(MatchRegexp(built(name))), "it was built somewhere else")
		}
	}, SpecTimeout(specTimeout))

	It("builds for the dispatcher until the jump host dies, and again when it is back", func(ctx context.Context) {
		other := newBuilder(ctx, nixlab.BuilderOptions{Name: "jump-other"})
		behind := endpoint(far)
		behind.Jump = &address
		d := newDispatcherWith([]string{"--keys-dir=" + keys}, document(behind))
		client := newClient(ctx, d, nixlab.ClientOptions{Name: "jump-c"})
		gate := "/tmp/gate-jump"
		build := startBuild(ctx, client, nixlab.Gated("jump-gated", gate))
		Eventually(build.output.String).WithTimeout(patience).Should(ContainSubstring("at the gate"))
		Expect(buildsRunning(far)).To(Equal(1))
		d.useList(document(behind, endpoint(other)))
		Expect(other.WriteFile(gate, "", 0o644)).To(Succeed())

		began := time.Now()
		jump.Kill()
		build.expectSuccess()
		AddReportEntry("failover", time.Since(began).String())
		Expect(build.output.String()).To(ContainSubstring("builder lab/jump-far lost (its jump host: connection lost): rebuilding on lab/jump-other"))
		Expect(mustList(other)).To(ContainElement(MatchRegexp(built("jump-gated"))))

		d.useList(document(behind))
		waiting := startBuild(ctx, client, nixlab.Trivial("jump-waiting"))
		waiting.expectWaiting("jump-far is behind a jump host that ")
		Expect(jump.Restart(ctx)).To(Succeed())
		waiting.expectSuccess()
		Expect(mustList(far)).To(ContainElement(MatchRegexp(built("jump-waiting"))))
	}, SpecTimeout(specTimeout))
})

// admitTo lets the key in file, and no other, forward connections to a builder.
func admitTo(jump *nixlab.Builder, file string, to *nixlab.Builder) {
	GinkgoHelper()
	public, err := os.ReadFile(file + ".pub")
	Expect(err).NotTo(HaveOccurred())
	line := `restrict,port-forwarding,permitopen="` + to.Address() + `" ` + string(public)
	Expect(jump.WriteFile(jumpKeys, line, 0o644)).To(Succeed())
}

// siteObject is a NixBuilder with one healthy endpoint, which is behind a jump host.
func siteObject(far *nixlab.Builder, jump inventory.Jump) *v1alpha1.NixBuilder {
	return builders.MakeNixBuilder("site").Systems(nixlab.System()).
		EndpointWith(v1alpha1.Endpoint{Name: "far", Host: far.IP(), Port: int32(far.Port()), HostKeys: []string{far.HostKey()}}).
		EndpointStatus(v1alpha1.EndpointStatus{Name: "far", Address: far.Address(), State: v1alpha1.EndpointHealthy, Credential: "lab"}).
		Change(func(b *v1alpha1.NixBuilder) {
			b.Spec.User = nixlab.TrustedUser
			b.Spec.Credentials.SecretRefs[0].Name = "lab"
			b.Spec.ProxyJump = &v1alpha1.ProxyJump{
				Host: jump.Host, Port: int32(jump.Port), User: jump.User, HostKeys: jump.HostKeys,
				Credentials: &v1alpha1.Credentials{SecretRefs: []v1alpha1.SecretReference{{Name: jumpSecret}}},
			}
			b.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionAccepted, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonAccepted}}
		}).Obj()
}

// newDirectClient starts a client that reaches builders itself, with ConfigMap and keys
// where a pod has them.
func newDirectClient(ctx context.Context, name string, version nixlab.Version, content *machines.Content, keys string) *nixlab.Client {
	GinkgoHelper()
	client, err := lab.StartClient(ctx, nixlab.ClientOptions{
		Name: name, Version: version, Network: true, NixConf: "!include " + machines.MountPath + "/" + machines.KeyNixConf,
	})
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(client.Kill)
	for key, text := range content.Data {
		Expect(client.WriteFile(machines.MountPath+"/"+key, text, 0o644)).To(Succeed())
	}
	for _, secret := range []string{"lab", jumpSecret} {
		file := filepath.Join(secret, "ssh-privatekey")
		text, err := os.ReadFile(filepath.Join(keys, file))
		Expect(err).NotTo(HaveOccurred())
		Expect(client.WriteFile(filepath.Join(machines.KeysPath, file), string(text), 0o600)).To(Succeed())
	}
	return client
}
