// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scheduler

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// line serves requests on a ledger and notes in which order.
type line struct {
	*testing.T
	ledger *Local
	// waiting and served are labels and requests, in order.
	waiting []*waiter
	served  []string
	leases  []*Lease
}

func newLine(t *testing.T, builders ...Builder) *line {
	l := &line{T: t, ledger: NewLocal(LocalOptions{})}
	l.ledger.Update(builders)
	return l
}

// ask adds a request for each label; a label's first letter is the client.
func (l *line) ask(class Class, labels ...string) {
	l.Helper()
	for _, label := range labels {
		r := Request{Class: class, Client: strings.TrimRight(label, "0123456789"), Label: label}
		l.waiting = append(l.waiting, l.ledger.ask(r))
		l.look()
	}
}

// look notes who has been served.
func (l *line) look() {
	l.Helper()
	for i := 0; i < len(l.waiting); i++ {
		select {
		case lease := <-l.waiting[i].granted:
			l.served = append(l.served, l.waiting[i].request.Label)
			l.leases = append(l.leases, lease)
			l.waiting = append(l.waiting[:i:i], l.waiting[i+1:]...)
			i--
		default:
		}
	}
}

// free gives the slot back that has been taken longest.
func (l *line) free() {
	l.Helper()
	if len(l.leases) == 0 {
		l.Fatalf("nothing runs, but %d wait", len(l.waiting))
	}
	l.leases[0].Release()
	l.leases = l.leases[1:]
	l.look()
}

// drain gives slots back until nobody waits.
func (l *line) drain() string {
	l.Helper()
	for len(l.waiting) > 0 {
		l.free()
	}
	return strings.Join(l.served, " ")
}

func numbered(client string, n int) []string {
	labels := make([]string, n)
	for i := range labels {
		labels[i] = fmt.Sprint(client, i+1)
	}
	return labels
}

func TestClientsTakeTurns(t *testing.T) {
	t.Parallel()
	plain, kvm := anyLinux.Class, Need("x86_64-linux", []string{"kvm"})
	hasKVM := func(b *Builder) { b.Supported = []string{"kvm"} }
	one := []Builder{linux("a", slots(1))}
	tests := map[string]struct {
		builders []Builder
		ask      func(l *line)
		want     string
	}{
		"first come first served within a client": {one, func(l *line) {
			l.ask(plain, numbered("a", 4)...)
		}, "a1 a2 a3 a4"},
		"many builds leave every second slot to few": {one, func(l *line) {
			l.ask(plain, numbered("a", 6)...)
			l.ask(plain, numbered("b", 2)...)
		}, "a1 a2 b1 a3 b2 a4 a5 a6"},
		"who comes joins the end of the round": {one, func(l *line) {
			l.ask(plain, "x1", "a1", "a2", "b1", "b2", "c1", "a3", "c2")
		}, "x1 a1 b1 c1 a2 b2 c2 a3"},
		"who comes again joins the end of the round": {one, func(l *line) {
			l.ask(plain, "x1", "a1", "b1", "b2", "b3")
			l.free() // a1
			l.ask(plain, "a2")
			l.free() // b1
		}, "x1 a1 b1 a2 b2 b3"},
		"those without a name are one client": {one, func(l *line) {
			l.ask(plain, "a1", "1", "2", "3", "a2", "a3")
		}, "a1 1 a2 2 a3 3"},
		"a client's builds with other needs do not give it two turns": {
			[]Builder{linux("a", slots(1), hasKVM)}, func(l *line) {
				l.ask(plain, "x1", "a1")
				l.ask(kvm, "a2")
				l.ask(plain, "a3")
				l.ask(kvm, "a4")
				l.ask(plain, "b1", "b2", "b3")
			}, "x1 a1 b1 a2 b2 a3 b3 a4"},
		"turns on other builders do not count": {
			[]Builder{linux("a", slots(1)), {ID: "d", Systems: []string{"aarch64-darwin"}, Slots: 1}}, func(l *line) {
				mac := Need("aarch64-darwin", nil)
				l.ask(mac, "x1", "b1", "c1", "c2", "c3") // the Mac is taken
				l.ask(plain, "x2", "b2", "b3", "b4", "b5")
				for range 4 {
					l.leases = append(l.leases[1:], l.leases[0]) // the Linux builder's
					l.free()
				}
			}, "x1 x2 b2 b3 b4 b5 b1 c1 c2 c3"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLine(t, tc.builders...)
			tc.ask(l)
			if got := l.drain(); got != tc.want {
				t.Errorf("served %s\n  want %s", got, tc.want)
			}
		})
	}
}

// TestTwoBuildsAmongTwoHundred is the promise in numbers.
func TestTwoBuildsAmongTwoHundred(t *testing.T) {
	t.Parallel()
	l := newLine(t, linux("a", slots(8)))
	l.ask(anyLinux.Class, numbered("a", 200)...)
	l.ask(anyLinux.Class, "b1", "b2")
	for range 4 {
		l.free()
	}
	if got := strings.Join(l.served[8:], " "); got != "a9 b1 a10 b2" {
		t.Errorf("after the eight that ran came %s", got)
	}
}

// TestPositionIsTruthful lets requests of one kind arrive at random, and then
// checks that each is served after as many others as it was told.
func TestPositionIsTruthful(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(2, 2))
	for range 50 {
		l := newLine(t, linux("a", slots(1)), linux("b", slots(2)))
		for i := range 40 {
			l.ask(anyLinux.Class, fmt.Sprint(string(rune('a'+random.IntN(5)*random.IntN(2))), i))
			if random.IntN(8) == 0 {
				l.free()
			}
		}
		told := map[string]int{}
		for _, q := range l.ledger.Status().Queue {
			told[q.Label] = q.Waiting.Ahead
		}
		before := len(l.served)
		l.drain()
		if len(told) != len(l.served)-before {
			t.Fatalf("%d waited, %d were served", len(told), len(l.served)-before)
		}
		for i, label := range l.served[before:] {
			if told[label] != i {
				t.Fatalf("%s came after %d others and was told %d ahead", label, i, told[label])
			}
		}
	}
}
