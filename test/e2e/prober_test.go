// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package e2e_test

import (
	"context"
	"os"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"nixbuilder.io/nix-builder-operator/internal/probe"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// Users that the specs below add to a builder, all with a password that nobody
// has and a home directory.
const moreUsers = `set -eu
add() {
	echo "$1:x:$2:100::/home/$1:$3" >>/etc/passwd
	echo "$1:*:19000:0:99999:7:::" >>/etc/shadow
	mkdir -p /home/$1
	chown $2:100 /home/$1
}
add nixx 4001 /bin/bash          # not in allowed-users
add nixn 4002 /usr/sbin/nologin
add nixp 4003 /bin/bash          # its shell prints
add nixf 4004 /bin/bash          # can only run nix-daemon
echo 'echo Welcome to this machine' >/home/nixp/.bashrc
`

// The prober on real sshd, shells and Nix of every version: what they print, how
// they exit and how they hang differs.
var _ = Describe("The prober", func() {
	for _, version := range nixlab.Versions() {
		Context("with Nix "+string(version), Ordered, func() {
			var (
				builder *nixlab.Builder
				target  probe.Target
				prober  *watchedProber
			)

			BeforeAll(func(ctx context.Context) {
				builder = newBuilder(ctx, nixlab.BuilderOptions{
					Name: "prober-" + slug(version), Version: version, Features: []string{"big-parallel"},
					NixConf:    "allowed-users = root nixt nixu nixf nixn nixp\ntrusted-users = root nixt nixf nixp",
					SSHDConfig: "Match User nixf\nForceCommand nix-daemon --stdio",
				})
				_, err := builder.Exec(ctx, "sh", "-c", moreUsers)
				Expect(err).NotTo(HaveOccurred())
				key, err := os.ReadFile(lab.ClientKeyFile())
				Expect(err).NotTo(HaveOccurred())
				target = probe.Target{
					Host: builder.IP(), Port: builder.Port(), User: nixlab.TrustedUser,
					HostKeys:    []string{builder.HostKey()},
					Credentials: []probe.Credential{{Name: "key", PrivateKey: key}},
					Systems:     []string{nixlab.System()}, Features: []string{"big-parallel"}, Discovery: true,
					Interval: time.Second, Timeout: 3 * time.Second,
				}
				prober = startProber()
			}, NodeTimeout(specTimeout))

			It("tells apart what can be wrong with an account", func(ctx context.Context) {
				user := func(name string) func(*probe.Target) {
					return func(t *probe.Target) { t.User = name }
				}
				tests := map[string]struct {
					change func(*probe.Target)
					want   probe.Reason
				}{
					"trusted":     {user(nixlab.TrustedUser), probe.ReasonAllPassed},
					"root":        {user("root"), probe.ReasonAllPassed},
					"untrusted":   {user(nixlab.UntrustedUser), probe.ReasonUserNotTrusted},
					"not-allowed": {user("nixx"), probe.ReasonDaemonHungUp},
					"nologin":     {user("nixn"), probe.ReasonLoginDisabled},
					"prints":      {user("nixp"), probe.ReasonLoginShellPrints},
					"forced":      {user("nixf"), probe.ReasonAllPassed},
					"nobody":      {user("nobody-here"), probe.ReasonAuthRefused},
					"path":        {func(t *probe.Target) { t.RemoteProgram = "/usr/bin/nix-daemon" }, probe.ReasonAllPassed},
					"wrong-path": {
						func(t *probe.Target) { t.RemoteProgram = "/opt/nix/bin/nix-daemon" }, probe.ReasonNixNotFound,
					},
					"no-program": {func(t *probe.Target) { t.RemoteProgram = "/etc/passwd" }, probe.ReasonNixNotExecutable},
					"first-use": {
						func(t *probe.Target) { t.HostKeys, t.TrustOnFirstUse = nil, true }, probe.ReasonAllPassed,
					},
					"other-host-key": {
						func(t *probe.Target) { t.HostKeys = []string{otherHostKey} }, probe.ReasonHostKeyChanged,
					},
					"more-systems": {
						func(t *probe.Target) { t.Systems = append(t.Systems, "riscv64-linux") }, probe.ReasonAllPassed,
					},
				}
				var targets []probe.Target
				for name, tc := range tests {
					one := target
					one.Endpoint = name
					one.Systems = append([]string(nil), target.Systems...)
					tc.change(&one)
					targets = append(targets, one)
				}
				key := probe.Key{Namespace: "e2e", Name: "accounts"}
				prober.Set(key, targets)
				DeferCleanup(prober.Forget, key)
				for name, tc := range tests {
					Eventually(prober.reasons(key, name)).WithContext(ctx).WithTimeout(patience).ShouldNot(BeEmpty(), name)
					Expect(prober.reasons(key, name)()).To(HaveExactElements(tc.want), "%s: %s", name, prober.Snapshot(key)[name].Message)
				}

				healthy := prober.Snapshot(key)["trusted"]
				facts := healthy.Result.Facts
				Expect(facts.NixVersion).To(Equal(builder.Nix()))
				Expect(facts.Trust).To(Equal(probe.Trusted))
				Expect(facts.Systems).To(ContainElement(nixlab.System()))
				Expect(facts.Features).To(Equal([]string{"big-parallel"}))
				Expect(facts.MaxJobs).To(Equal(4))
				Expect(healthy.Result.Outcome(probe.StepSystemsVerified).Reason).To(Equal(probe.ReasonSystemsVerified))
				systems := func(name string) probe.Reason {
					result := prober.Snapshot(key)[name].Result
					return result.Outcome(probe.StepSystemsVerified).Reason
				}
				Expect(systems("path")).To(Equal(probe.ReasonSystemsVerified))
				Expect(systems("forced")).To(Equal(probe.ReasonDiscoveryUnavailable))
				Expect(systems("more-systems")).To(Equal(probe.ReasonSystemsNotConfirmed))
			}, SpecTimeout(specTimeout))

			It("tells apart how a builder can go away, at the first probe", func(ctx context.Context) {
				key := probe.Key{Namespace: "e2e", Name: "breakages"}
				DeferCleanup(prober.Forget, key)
				target.Endpoint = "b"
				prober.Set(key, []probe.Target{target})
				well := func() { // and the next reasons are those of a breakage
					GinkgoHelper()
					Eventually(func() probe.Reason { return prober.Snapshot(key)["b"].Reason }).
						WithContext(ctx).WithTimeout(patience).Should(Equal(probe.ReasonAllPassed))
					prober.clear()
				}
				first := func(want probe.Reason) {
					GinkgoHelper()
					Eventually(prober.reasons(key, "b")).WithContext(ctx).WithTimeout(patience).ShouldNot(BeEmpty())
					Expect(prober.reasons(key, "b")()[0]).To(Equal(want), prober.Snapshot(key)["b"].Message)
				}
				well()
				Expect(builder.StopDaemon()).To(Succeed())
				first(probe.ReasonDaemonNotAnswering)
				Expect(builder.ContinueDaemon()).To(Succeed())
				well()
				Expect(builder.StopProcesses()).To(Succeed())
				first(probe.ReasonSSHStopped)
				Expect(builder.ContinueProcesses()).To(Succeed())
				well()
				Expect(builder.KillDaemon()).To(Succeed())
				first(probe.ReasonDaemonNotRunning)
				Expect(builder.Restart(ctx)).To(Succeed())
				well()
				_, err := builder.Exec(ctx, "rm", "/nix/var/nix/daemon-socket/socket")
				Expect(err).NotTo(HaveOccurred())
				first(probe.ReasonDaemonNotRunning)
				Expect(builder.Restart(ctx)).To(Succeed())
				well()
				builder.Kill()
				first(probe.ReasonConnectionRefused)
			}, SpecTimeout(specTimeout))
		})
	}
})

// otherHostKey is nobody's.
const otherHostKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"

// watchedProber is a prober that remembers which reasons its endpoints went through.
type watchedProber struct {
	*probe.Prober

	mu   sync.Mutex
	seen map[string][]probe.Reason
}

// startProber runs a prober until the end of the current node.
func startProber() *watchedProber {
	GinkgoHelper()
	w := &watchedProber{seen: map[string][]probe.Reason{}}
	w.Prober = probe.New(probe.Options{Dial: sshconn.NewDialer(nil), OnChange: w.note})
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		defer GinkgoRecover()
		Expect(w.Start(ctx)).To(Succeed())
	})
	DeferCleanup(func() {
		cancel()
		work.Wait()
	})
	return w
}

func (w *watchedProber) note(key probe.Key) {
	snapshots := w.Snapshot(key)
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, snapshot := range snapshots {
		id := key.String() + "/" + name
		seen := w.seen[id]
		if snapshot.Reason != probe.ReasonNotProbed && (len(seen) == 0 || seen[len(seen)-1] != snapshot.Reason) {
			w.seen[id] = append(seen, snapshot.Reason)
		}
	}
}

func (w *watchedProber) clear() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.seen)
}

func (w *watchedProber) reasons(key probe.Key, endpoint string) func() []probe.Reason {
	return func() []probe.Reason {
		w.mu.Lock()
		defer w.mu.Unlock()
		return append([]probe.Reason(nil), w.seen[key.String()+"/"+endpoint]...)
	}
}
