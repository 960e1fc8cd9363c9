// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package e2e_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/crypto/ssh"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/envtest"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// The steps of the reference page's "Replace a key", under load.
var _ = Describe("Replacing the key of builders", Ordered, func() {
	var cluster client.Client

	BeforeAll(func(context.Context) {
		environment, err := envtest.Start(envtest.Options{})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(environment.Stop)
		Expect(v1alpha1.AddToScheme(scheme.Scheme)).To(Succeed())
		cluster, err = environment.Client(scheme.Scheme)
		Expect(err).NotTo(HaveOccurred())
		startOperator(environment)
	}, NodeTimeout(specTimeout))

	DescribeTable("fails no build and no probe", func(ctx context.Context, what string, certified bool, version nixlab.Version) {
		s := newRotation(ctx, cluster, what, certified, version)
		load := s.startLoad(ctx)

		By("putting the new Secret before the old one, which alone is accepted")
		s.secretRefs(ctx, "new", "old")
		s.probed(ctx, "both-listed")
		Expect(s.inUse(ctx)()).To(Equal("old old"))
		load.goesOn(ctx)

		By("having the machine accept both")
		s.accept("old", "new")
		Eventually(s.inUse(ctx)).WithTimeout(patience).Should(Equal("new new"), "Secret in status and in the machines file")
		load.goesOn(ctx)

		By("having it accept the new one alone")
		s.accept("new")
		s.probed(ctx, "old-refused")
		load.goesOn(ctx)

		if certified {
			By("renewing the certificate in its Secret")
			s.renew(ctx, "new")
			s.probed(ctx, "renewed")
			load.goesOn(ctx)
		}

		By("removing the old one")
		s.secretRefs(ctx, "new")
		s.remove(ctx, "old")
		s.probed(ctx, "old-gone")
		load.goesOn(ctx)

		By("logging in anew with what is left")
		load.stop()
		_, err := s.builder.Exec(ctx, "pkill", "-u", nixlab.TrustedUser)
		Expect(err).NotTo(HaveOccurred())
		load = s.startLoad(ctx)
		load.goesOn(ctx)
		load.stop()
		Expect(s.inUse(ctx)()).To(Equal("new new"))
		Expect(s.trouble(ctx)).To(BeEmpty(), "the endpoint was not Healthy all the time")
	},
		Entry("of keys", "keys", false, nixlab.Newest, SpecTimeout(specTimeout)),
		Entry("of keys, for an old Nix", "keys-28", false, nixlab.Nix28, SpecTimeout(specTimeout)),
		Entry("of certificates", "certificates", true, nixlab.Newest, SpecTimeout(specTimeout)),
	)
})

// rotation is a builder with a namespace of its own, clients of both kinds, and what
// stands for the volumes of their pods.
type rotation struct {
	cluster   client.Client
	namespace string
	certified bool
	builder   *nixlab.Builder
	direct    *nixlab.Client
	queued    *nixlab.Client
	d         *dispatcher
	keys      string // the dispatcher's directory of keys
	key       map[string]ssh.Signer
	files     map[string]map[string][]byte // of Secrets
	authority map[string]ssh.Signer

	mu     sync.Mutex
	states []string // those that are not Healthy, after it was
}

// accepted is the file that says whose keys the machine accepts.
const accepted = "/etc/ssh/lab_accepted"

func newRotation(ctx context.Context, cluster client.Client, what string, certified bool, version nixlab.Version) *rotation {
	GinkgoHelper()
	s := &rotation{
		cluster: cluster, namespace: "rotate-" + what, certified: certified, keys: GinkgoT().TempDir(),
		key: map[string]ssh.Signer{}, authority: map[string]ssh.Signer{}, files: map[string]map[string][]byte{},
	}
	option := "AuthorizedKeysFile " + accepted
	if certified {
		option = "AuthorizedKeysFile none\nTrustedUserCAKeys " + accepted
	}
	// sshd takes the first value of an option that is there twice.
	s.builder = newBuilder(ctx, nixlab.BuilderOptions{
		Name: s.namespace + "-b", Version: version,
		SSHDConfig: "Match User " + nixlab.TrustedUser + "\n" + strings.ReplaceAll(option, "\n", "\n  "),
	})
	Expect(cluster.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.namespace}})).To(Succeed())
	for _, name := range []string{"old", "new"} {
		private, _ := sshtest.NewKeyFile(GinkgoTB())
		signer, err := ssh.ParsePrivateKey(private)
		Expect(err).NotTo(HaveOccurred())
		s.key[name], s.authority[name] = signer, sshtest.NewKey(GinkgoTB())
		s.files[name] = map[string][]byte{corev1.SSHAuthPrivateKey: private}
		if certified {
			s.files[name][v1alpha1.CredentialCertificateKey] = s.certificate(name)
		}
		Expect(cluster.Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: name, Labels: map[string]string{v1alpha1.CredentialLabel: "true"}},
			Type:       corev1.SecretTypeSSHAuth, Data: s.files[name],
		})).To(Succeed())
	}
	s.accept("old")
	s.startClients(ctx, version)
	return s
}

// certificate signs one for the user that expires soon enough to be renewed.
func (s *rotation) certificate(name string) []byte {
	GinkgoHelper()
	return ssh.MarshalAuthorizedKey(sshtest.NewCertificate(GinkgoTB(), s.authority[name], sshtest.Certificate{
		Key: s.key[name].PublicKey(), Type: ssh.UserCert, Principals: []string{nixlab.TrustedUser},
		ValidBefore: time.Now().Add(time.Hour),
	}))
}

// accept has the machine accept the keys, or certificates, of these alone.
func (s *rotation) accept(names ...string) {
	GinkgoHelper()
	var text strings.Builder
	for _, name := range names {
		key := s.key[name].PublicKey()
		if s.certified {
			key = s.authority[name].PublicKey()
		}
		text.Write(ssh.MarshalAuthorizedKey(key))
	}
	replace(s.builder.Host, accepted, text.String(), 0o644)
}

// renew puts a new certificate for the same key into a Secret.
func (s *rotation) renew(ctx context.Context, name string) {
	GinkgoHelper()
	s.files[name][v1alpha1.CredentialCertificateKey] = s.certificate(name)
	secret := &corev1.Secret{}
	Expect(s.cluster.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: name}, secret)).To(Succeed())
	secret.Data = s.files[name]
	Expect(s.cluster.Update(ctx, secret)).To(Succeed())
	s.mount(name)
}

// secretRefs lists these Secrets in the spec.
func (s *rotation) secretRefs(ctx context.Context, names ...string) {
	GinkgoHelper()
	object := s.object(ctx)
	object.Spec.Credentials.SecretRefs = nil
	for _, name := range names {
		object.Spec.Credentials.SecretRefs = append(object.Spec.Credentials.SecretRefs, v1alpha1.SecretReference{Name: name})
	}
	Expect(s.cluster.Update(ctx, object)).To(Succeed())
}

func (s *rotation) object(ctx context.Context) *v1alpha1.NixBuilder {
	GinkgoHelper()
	object := &v1alpha1.NixBuilder{}
	Expect(s.cluster.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: "pool"}, object)).To(Succeed())
	return object
}

// probed asks for a probe and waits for its result, in which everything is well.
func (s *rotation) probed(ctx context.Context, request string) {
	GinkgoHelper()
	object := s.object(ctx)
	changed := object.DeepCopy()
	changed.Annotations = map[string]string{v1alpha1.ProbeRequestAnnotation: request}
	Expect(s.cluster.Patch(ctx, changed, client.MergeFrom(object))).To(Succeed())
	var last *v1alpha1.LastProbe
	Eventually(func() string {
		if last = s.object(ctx).Status.LastProbe; last == nil {
			return ""
		}
		return last.Request
	}).WithTimeout(patience).Should(Equal(request))
	for _, step := range append(last.Steps, last.Endpoints[0].Steps...) {
		Expect(step.Status).NotTo(Equal(metav1.ConditionFalse), fmt.Sprintf("%+v", step))
	}
}

// inUse names the Secret in use: in status, and in column 3 of the machines file.
func (s *rotation) inUse(ctx context.Context) func() (string, error) {
	return func() (string, error) {
		var file corev1.ConfigMap
		if err := s.cluster.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: "nix-machines"}, &file); err != nil {
			return "", err
		}
		columns := strings.Fields(file.Data["machines"])
		endpoint := s.object(ctx).Status.Endpoint("b")
		if endpoint == nil || len(columns) != 8 {
			return "nothing yet", nil
		}
		path := strings.TrimPrefix(columns[2], "/etc/nix-keys/")
		return endpoint.Credential + " " + strings.TrimSuffix(path, "/ssh-privatekey"), nil
	}
}

// trouble lists what the endpoint went through besides being healthy, and events that
// warn.
func (s *rotation) trouble(ctx context.Context) []string {
	GinkgoHelper()
	var list corev1.EventList
	Expect(s.cluster.List(ctx, &list, client.InNamespace(s.namespace))).To(Succeed())
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.states
	for _, event := range list.Items {
		if event.Type == corev1.EventTypeWarning {
			all = append(all, event.Reason+": "+event.Message)
		}
	}
	return all
}
