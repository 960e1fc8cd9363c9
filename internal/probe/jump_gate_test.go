// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// A jump host is held to the denied ranges; the machine behind it is looked up and
// connected to by the jump host.
func TestJumpHostAddressDenied(t *testing.T) {
	t.Parallel()
	target := targetFor(t, sshtest.New(t, sshtest.Behavior{}))
	target.Jump = jumpFor(t, sshtest.New(t, sshtest.Behavior{}))
	result, _, err := newChecker(Options{}).check(t.Context(), &target, knowledge{})
	if err != nil {
		t.Fatal(err)
	}
	expectFailure(t, result, StepReachable, ReasonJumpUnreachable, "127.0.0.0/8", "--denied-ranges")
}

// Machines behind a jump host that do not answer keep nobody from the jump host; a jump
// host that does not answer itself is found out for all soon.
func TestJumpHostGate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		network, over := sshtest.NewNetwork(), make(chan struct{})
		defer close(over)
		key := sshtest.NewKey(t)
		sshtest.Serve(t, network.Listen("jump:22"), key, sshtest.Behavior{Forward: func(string) (net.Conn, error) {
			<-over
			return nil, os.ErrClosed
		}})
		network.BlackHole("dead:22")
		c := newChecker(Options{Dial: network.Dial, Random: func() float64 { return 0 }})
		private, _ := sshtest.NewKeyFile(t)
		probeAll := func(host string, number int) (longest time.Duration) {
			var work sync.WaitGroup
			var mu sync.Mutex
			began := time.Now()
			for range number {
				work.Go(func() {
					lines := []string{sshconn.AuthorizedKey(key.PublicKey())}
					credentials := []Credential{{Name: "k", PrivateKey: private}}
					target := Target{
						Endpoint: "mac-2", Host: "10.0.0.5", User: "nixt", HostKeys: lines, Credentials: credentials,
						Jump: &Jump{Host: host, User: "hop", HostKeys: lines, Credentials: credentials},
					}.withDefaults()
					result, _, err := c.check(t.Context(), &target, knowledge{})
					failure, _ := result.Failure()
					if err != nil || failure.Step != StepReachable {
						t.Errorf("%+v, %v", failure, err)
					}
					mu.Lock()
					longest = max(longest, time.Since(began))
					mu.Unlock()
				})
			}
			work.Wait()
			return longest
		}
		if took := probeAll("jump", 8); took != DefaultTimeout {
			t.Errorf("8 machines that do not answer took %v", took)
		}
		if took := probeAll("dead", 8); took != DefaultTimeout+7*jumpPatience {
			t.Errorf("8 machines behind a jump host that does not answer took %v", took)
		}
	})
}

func TestRetargetJumpHost(t *testing.T) {
	t.Parallel()
	jump := func(change func(*Jump)) *Target {
		j := Jump{Host: "jump", User: "hop", HostKeys: []string{"k"}, Credentials: []Credential{{Name: "s", PrivateKey: Secret("a")}}}
		change(&j)
		return &Target{Host: "h", Port: 22, Jump: &j}
	}
	same := jump(func(*Jump) {})
	tests := map[string]struct {
		other           *Target
		wantMachine     bool
		wantCredentials bool
	}{
		"equal":        {other: jump(func(j *Jump) { j.Port = DefaultPort }), wantMachine: true, wantCredentials: true},
		"another host": {other: jump(func(j *Jump) { j.Host = "other" }), wantCredentials: true},
		"another user": {other: jump(func(j *Jump) { j.User = "other" }), wantCredentials: true},
		"another key":  {other: jump(func(j *Jump) { j.HostKeys = nil }), wantCredentials: true},
		"rotated":      {other: jump(func(j *Jump) { j.Credentials[0].PrivateKey = Secret("b") }), wantMachine: true},
		"no jump host": {other: &Target{Host: "h", Port: 22}},
	}
	for name, tc := range tests {
		if got := sameMachine(same, tc.other); got != tc.wantMachine {
			t.Errorf("%s: same machine: %v", name, got)
		}
		if got := sameCredentials(same, tc.other); got != tc.wantCredentials {
			t.Errorf("%s: same credentials: %v", name, got)
		}
	}
	if !sameMachine(&Target{}, &Target{}) || strings.Contains((&Target{}).who(), "behind") {
		t.Error("without a jump host")
	}
}
