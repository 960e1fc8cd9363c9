// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package e2e_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/builders"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// startClients declares the builder, and starts a client that reaches it with stock ssh
// and one with a dispatcher. Both follow the ConfigMap as pods do.
func (s *rotation) startClients(ctx context.Context, version nixlab.Version) {
	GinkgoHelper()
	b := s.builder
	Expect(s.cluster.Create(ctx, builders.MakeNixBuilder("pool").Namespace(s.namespace).Systems(nixlab.System()).MaxJobs(4).Secrets("old").
		EndpointWith(v1alpha1.Endpoint{Name: "b", Host: b.IP(), Port: int32(b.Port()), HostKeys: []string{b.HostKey()}}).
		Change(func(n *v1alpha1.NixBuilder) {
			n.Spec.User = nixlab.TrustedUser
			n.Spec.Probe.IntervalSeconds, n.Spec.Probe.TimeoutSeconds = 5, 5
		}).Obj())).To(Succeed())
	Eventually(s.inUse(ctx)).WithTimeout(patience).Should(Equal("old old"))

	var err error
	s.direct, err = lab.StartClient(ctx, nixlab.ClientOptions{
		Name: s.namespace + "-direct", Version: version, Network: true,
		NixConf: "builders = @/etc/nix-machines/machines\nextra-experimental-features =",
	})
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(s.direct.Kill)
	s.mount("old")
	s.mount("new")
	file := s.published(ctx)
	s.spread(file)
	s.d = newDispatcherWith([]string{"--keys-dir=" + s.keys}, file.Data["builders.json"])
	s.queued = newClient(ctx, s.d, nixlab.ClientOptions{Name: s.namespace + "-queued", Version: version})
	s.follow(file)
}

func (s *rotation) published(ctx context.Context) *corev1.ConfigMap {
	GinkgoHelper()
	file := &corev1.ConfigMap{}
	Expect(s.cluster.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: "nix-machines"}, file)).To(Succeed())
	return file
}

// mount puts a Secret where clients have it.
func (s *rotation) mount(name string) {
	GinkgoHelper()
	dir := filepath.Join(s.keys, name)
	Expect(os.MkdirAll(dir, 0o700)).To(Succeed())
	for file, text := range s.files[name] {
		path := filepath.Join(dir, file)
		Expect(os.WriteFile(path+".new", text, 0o600)).To(Succeed())
		Expect(os.Rename(path+".new", path)).To(Succeed())
		replace(s.direct.Host, "/etc/nix-keys/"+name+"/"+file, string(text), 0o600)
	}
}

// remove deletes a Secret, everywhere.
func (s *rotation) remove(ctx context.Context, name string) {
	GinkgoHelper()
	secret := &corev1.Secret{}
	secret.Namespace, secret.Name = s.namespace, name
	Expect(s.cluster.Delete(ctx, secret)).To(Succeed())
	Expect(os.RemoveAll(filepath.Join(s.keys, name))).To(Succeed())
	_, err := s.direct.Exec(ctx, "rm", "-r", "/etc/nix-keys/"+name)
	Expect(err).NotTo(HaveOccurred())
}

// spread brings the ConfigMap to the direct client.
func (s *rotation) spread(file *corev1.ConfigMap) {
	GinkgoHelper()
	for _, name := range []string{"ssh_config", "known_hosts", "machines"} {
		replace(s.direct.Host, "/etc/nix-machines/"+name, file.Data[name], 0o644)
	}
}

// follow keeps clients up to date with the ConfigMap, and notes every state of the
// endpoint that is not Healthy, until the end of the spec.
func (s *rotation) follow(last *corev1.ConfigMap) {
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	DeferCleanup(func() {
		cancel()
		work.Wait()
	})
	work.Go(func() {
		defer GinkgoRecover()
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if file := s.published(context.Background()); file.ResourceVersion != last.ResourceVersion {
				s.spread(file)
				s.d.setList(file.Data["builders.json"])
				last = file
			}
			if endpoint := s.object(context.Background()).Status.Endpoint("b"); endpoint.State != v1alpha1.EndpointHealthy {
				s.mu.Lock()
				s.states = append(s.states, fmt.Sprintf("%s %s: %s", endpoint.State, endpoint.Reason, endpoint.Message))
				s.mu.Unlock()
			}
		}
	})
}

// load is builds of both clients, one after the other on each.
type load struct {
	built [2]atomic.Int64
	end   func()
}

var loads atomic.Int64

// startLoad builds without a pause until stop.
func (s *rotation) startLoad(ctx context.Context) *load {
	l := &load{}
	var work sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	stopping := make(chan struct{})
	l.end = sync.OnceFunc(func() {
		close(stopping)
		work.Wait()
		cancel()
	})
	DeferCleanup(l.end)
	number := loads.Add(1)
	for i, c := range []*nixlab.Client{s.direct, s.queued} {
		work.Go(func() {
			defer GinkgoRecover()
			for n := 0; ; n++ {
				select {
				case <-stopping:
					return
				default:
				}
				name := fmt.Sprintf("%s-%d-%d-%d", s.namespace, number, i, n)
				result, err := c.Run(ctx, "env", "NIX_SSHOPTS=-F /etc/nix-machines/ssh_config", "nix-build", "--no-out-link", "--expr", nixlab.Trivial(name))
				Expect(err).NotTo(HaveOccurred())
				Expect(result.Status).To(BeZero(), "build %s of client %s fails:\n%s", name, c.Name(), result.Stderr)
				l.built[i].Add(1)
			}
		})
	}
	return l
}

// goesOn waits until each client has built something from begin to end.
func (l *load) goesOn(context.Context) {
	GinkgoHelper()
	for i := range l.built {
		before := l.built[i].Load()
		Eventually(l.built[i].Load).WithTimeout(patience).Should(BeNumerically(">=", before+2))
	}
}

func (l *load) stop() { l.end() }

// replace writes a file of a running machine at once.
func replace(h *nixlab.Host, path, text string, mode os.FileMode) {
	GinkgoHelper()
	Expect(h.WriteFile(path+".new", text, mode)).To(Succeed())
	pid, err := h.PID()
	Expect(err).NotTo(HaveOccurred())
	root := filepath.Join("/proc", fmt.Sprint(pid), "root")
	Expect(os.Rename(filepath.Join(root, path+".new"), filepath.Join(root, path))).To(Succeed())
}
