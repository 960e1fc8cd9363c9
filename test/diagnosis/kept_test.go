// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/envtest"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

const (
	// keptInterval is so long that nothing happens in time by probing alone.
	keptInterval = 60 * time.Second
	// soon is the time for a loss to show, also on a busy machine: the promise is
	// five seconds.
	soon = 20 * time.Second
	// flaps is how often a builder is killed and restarted, flapEvery how often.
	flaps     = 6
	flapEvery = 6 * time.Second
)

// keptSite is three builders of one NixBuilder with kept connections, one of them
// behind a relay.
type keptSite struct {
	*site
	key    client.ObjectKey
	victim *nixlab.Builder
	link   *nixlab.Link
}

func newKeptSite(t *testing.T) *keptSite {
	t.Helper()
	s := &keptSite{site: startSite(t, &site{keeps: true})}
	s.victim = s.newBuilder(t, nixlab.BuilderOptions{Name: "victim"})
	spare := s.newBuilder(t, nixlab.BuilderOptions{Name: "spare"})
	linked := s.newBuilder(t, nixlab.BuilderOptions{Name: "linked"})
	var err error
	if s.link, err = s.lab.NewLink(linked.Address()); err != nil {
		t.Fatal(err)
	}
	host, portText, err := net.SplitHostPort(s.link.Address())
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.ParseInt(portText, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	s.key = s.declare(t, "kept", s.victim, func(spec *v1alpha1.NixBuilderSpec) {
		spec.Probe.IntervalSeconds, spec.Probe.TimeoutSeconds = int32(keptInterval/time.Second), 10
		spec.Endpoints = append(spec.Endpoints,
			v1alpha1.Endpoint{Name: "spare", Host: spare.IP(), Port: int32(spare.Port()), HostKeys: []string{spare.HostKey()}},
			v1alpha1.Endpoint{Name: "linked", Host: host, Port: int32(port), HostKeys: []string{linked.HostKey()}},
		)
	})
	return s
}

// machines counts the lines of the machines file.
func (s *keptSite) machines(ctx context.Context) (int, error) {
	var file corev1.ConfigMap
	if err := s.Get(ctx, client.ObjectKey{Namespace: s.key.Namespace, Name: "nix-machines"}, &file); client.IgnoreNotFound(err) != nil {
		return 0, err
	}
	n := 0
	for line := range strings.Lines(file.Data["machines"]) {
		if strings.HasPrefix(line, "ssh-ng://") {
			n++
		}
	}
	return n, nil
}

// awaitMachines waits until the machines file has so many lines, and returns how long
// that took.
func (s *keptSite) awaitMachines(t *testing.T, want int, limit time.Duration) time.Duration {
	t.Helper()
	began := time.Now()
	for {
		got, err := s.machines(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		if got == want {
			return took
		}
		if took > limit {
			t.Fatalf("after %v there are %d machines in the file, want %d", took, got, want)
		}
		time.Sleep(polling / 2)
	}
}

// face is what must not change while nothing happens that matters.
func (s *keptSite) face(t *testing.T) string {
	t.Helper()
	var object v1alpha1.NixBuilder
	var file corev1.ConfigMap
	for _, err := range []error{
		s.Get(t.Context(), s.key, &object),
		s.Get(t.Context(), client.ObjectKey{Namespace: s.key.Namespace, Name: "nix-machines"}, &file),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return fmt.Sprintf("NixBuilder %s, ConfigMap %s, events %v",
		object.ResourceVersion, file.ResourceVersion, s.eventReasons(t, s.key.Namespace))
}

// TestKept: what becomes of real builders, one after the other, while the operator
// keeps connections to them.
func TestKept(t *testing.T) {
	s := newKeptSite(t)
	s.awaitMachines(t, 3, patience)
	t.Run("killed", func(t *testing.T) {
		s.goesAndReturns(t, s.victim.Kill, func() {
			if err := s.victim.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	})
	t.Run("frozen", func(t *testing.T) {
		must := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		s.goesAndReturns(t, func() { must(s.victim.StopProcesses()) }, func() { must(s.victim.ContinueProcesses()) })
	})
	t.Run("cut off silently", func(t *testing.T) { s.goesAndReturns(t, s.link.Silence, s.link.Speak) })
	t.Run("sshd restarted", s.restartOfServer)
	t.Run("flapping", s.flapping)
}

// goesAndReturns: a builder that is gone leaves the file long before its next probe,
// and is in it again within one interval after it is back.
func (s *keptSite) goesAndReturns(t *testing.T, goes, returns func()) {
	goes()
	t.Logf("gone from the machines file after %.1fs", s.awaitMachines(t, 2, soon).Seconds())
	returns()
	t.Logf("in it again after %.1fs", s.awaitMachines(t, 3, keptInterval+soon/4).Seconds())
}

// endServer ends sshd with every connection that it serves, and starts another one.
const endServer = `for p in /proc/[0-9]*; do read -r name <$p/comm && case $name in sshd*) kill -9 ${p#/proc/};; esac; done
/usr/sbin/sshd -f /etc/ssh/lab_sshd_config -E /var/log/lab/sshd.log`

// restartOfServer: a restart of sshd is noticed, and is nothing to tell anybody.
func (s *keptSite) restartOfServer(t *testing.T) {
	before, logins := s.face(t), s.logins()
	if _, err := s.victim.Exec(t.Context(), "/bin/sh", "-c", endServer); err != nil {
		t.Fatal(err)
	}
	// On a machine that is so busy that keepalives come late, none may be kept now: then
	// the next probe is the first to look.
	began := time.Now()
	for s.logins() == logins {
		if time.Since(began) > keptInterval+soon {
			t.Fatal("nobody has looked after the builder")
		}
		time.Sleep(polling)
	}
	t.Logf("looked after %.1fs", time.Since(began).Seconds())
	time.Sleep(2 * time.Second) // for writes that there must not be
	if after := s.face(t); after != before {
		t.Errorf("before: %s\nafter: %s", before, after)
	}
}

// logins counts the logins that the victim's sshd has seen.
func (s *keptSite) logins() int { return strings.Count(s.victim.Logs(), "Accepted publickey") }

// flapping: a builder that goes and comes ten times a minute is told of once for each
// time, and the ConfigMap is written no more often than its limit allows.
func (s *keptSite) flapping(t *testing.T) {
	var object v1alpha1.NixBuilder
	if err := s.Get(t.Context(), s.key, &object); err != nil {
		t.Fatal(err)
	}
	object.Spec.Probe.IntervalSeconds, object.Spec.Probe.TimeoutSeconds = 5, 5 // looked for soon
	if err := s.Update(t.Context(), &object); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for i := range flaps {
		s.victim.Kill()
		time.Sleep(time.Until(began.Add(time.Duration(2*i+1) * flapEvery / 2)))
		if err := s.victim.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Until(began.Add(time.Duration(2*i+2) * flapEvery / 2)))
	}
	s.awaitMachines(t, 3, patience)
	time.Sleep(2 * time.Second) // for late events
	writes, err := s.environment.Writes()
	if err != nil {
		t.Fatal(err)
	}
	writes = slices.DeleteFunc(writes, func(w envtest.Write) bool { return w.Namespace != s.key.Namespace })
	counts := map[string]int{}
	for key, n := range envtest.CountWrites(writes, began, time.Now()) {
		counts[key.Resource] += n
	}
	took := time.Since(began)
	t.Logf("written within %.0fs: %v; events: %v", took.Seconds(), counts, s.eventReasons(t, s.key.Namespace))
	const transitions = 2 * flaps
	if n := counts["events"]; n > transitions+1 {
		t.Errorf("%d writes of events for at most %d transitions", n, transitions)
	}
	// One in five seconds on average, six of them ahead of that.
	if n, most := counts["configmaps"], int(took/(5*time.Second))+6; n > most || n == 0 {
		t.Errorf("%d writes of the ConfigMap in %v, want at most %d", n, took, most)
	}
}
