// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"context"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// refusing is a jump host in a bubble that lets nobody in but those that are given, and
// what leads through it.
type refusing struct {
	server *sshtest.Server
	check  *checker
	target Target
}

func newRefusing(t *testing.T) *refusing {
	network, key := sshtest.NewNetwork(), sshtest.NewKey(t)
	private, _ := sshtest.NewKeyFile(t)
	lines := []string{sshconn.AuthorizedKey(key.PublicKey())}
	credentials := []Credential{{Name: "k", PrivateKey: private}}
	return &refusing{
		server: sshtest.Serve(t, network.Listen("jump:22"), key, sshtest.Behavior{Users: []string{}}),
		check:  newChecker(Options{Dial: network.Dial, Random: func() float64 { return 0 }}),
		target: Target{
			Endpoint: "mac-2", Host: "10.0.0.5", User: "nixt", HostKeys: lines, Credentials: credentials,
			Jump: &Jump{Host: "jump", User: "hop", HostKeys: lines, Credentials: credentials},
		}.withDefaults(),
	}
}

// probe probes several endpoints at once and returns the logins that this took.
func (r *refusing) probe(t *testing.T, number int, target Target, want Reason) int {
	t.Helper()
	before := r.server.Accepted()
	var work sync.WaitGroup
	for range number {
		work.Go(func() {
			one := target
			result, _, err := r.check.check(t.Context(), &one, knowledge{})
			if failure, _ := result.Failure(); err != nil || failure.Reason != want {
				t.Errorf("%+v, %v, want %s", failure, err, want)
			}
		})
	}
	work.Wait()
	return r.server.Accepted() - before
}

// One refused login at a jump host is enough for all endpoints behind it: it is found
// out anew after a while, when somebody asks, and with other keys.
func TestJumpHostRefusesOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRefusing(t)
		other := r.target
		other.Jump = &Jump{Host: "jump", User: "hop", HostKeys: r.target.HostKeys}
		private, _ := sshtest.NewKeyFile(t)
		other.Jump.Credentials = []Credential{{Name: "k", PrivateKey: private}}
		asked := func() Target {
			time.Sleep(time.Second)
			target := r.target
			target.asked = time.Now()
			return target
		}
		expect := func(when string, number int, target Target, want int) {
			t.Helper()
			if got := r.probe(t, number, target, ReasonJumpLoginRefused); got != want {
				t.Errorf("%s: %d logins, want %d", when, got, want)
			}
		}
		expect("at once", 20, r.target, 1)
		time.Sleep(refusalAge - time.Second)
		expect("soon", 20, r.target, 0)
		time.Sleep(2 * time.Second)
		expect("later", 20, r.target, 1)
		expect("on request", 20, asked(), 1)
		expect("on the next request", 20, asked(), 1)
		expect("other keys", 20, other, 1)
		if len(r.check.refusals.last) != 2 {
			t.Errorf("%d logins are remembered", len(r.check.refusals.last))
		}
		time.Sleep(refusalAge + time.Second)
		expect("one of two", 1, r.target, 1)
		if len(r.check.refusals.last) != 1 {
			t.Errorf("%d logins are remembered after their time", len(r.check.refusals.last))
		}
	})
}

// A jump host that lets somebody in again is not held to what it did before.
func TestJumpHostRefusesNoMore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRefusing(t)
		r.probe(t, 1, r.target, ReasonJumpLoginRefused)
		r.server.Set(sshtest.Behavior{Forward: func(string) (net.Conn, error) { return nil, os.ErrClosed }})
		time.Sleep(time.Second)
		target := r.target
		target.asked = time.Now()
		if got := r.probe(t, 1, target, ReasonUnreachable); got != 1 {
			t.Errorf("%d logins on request", got)
		}
		if got := r.probe(t, 3, r.target, ReasonUnreachable); got != 3 {
			t.Errorf("%d logins of others afterwards", got)
		}
	})
}

// A probe knows since when somebody waits for it.
func TestRequestedProbeIsAskedFor(t *testing.T) {
	t.Parallel()
	onStage(t, func(t *testing.T, s *stage) {
		var asked []float64
		s.answer = func(_ context.Context, target *Target, _ int) Result {
			at := -1.0
			if !target.asked.IsZero() {
				at = target.asked.Sub(s.began).Seconds()
			}
			asked = append(asked, at)
			return passed()
		}
		s.Set(builder, []Target{target("a")})
		pass(10 * time.Second)
		s.Request(builder, "now")
		pass(time.Minute)
		if want := []float64{-1, 10, -1, -1}; !cmp.Equal(asked, want) {
			t.Errorf("asked for at %v, want %v", asked, want)
		}
	})
}
