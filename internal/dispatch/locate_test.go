// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

// has puts files into a machine's store.
func (m *machine) has(files ...file) *machine {
	for _, f := range files {
		m.Add(f.info, f.nar)
	}
	return m
}

// ask returns which of the files the dispatcher says are there, as a string of
// their names.
func (c *client) ask(substitute bool, files ...file) string {
	c.t.Helper()
	names := map[string]string{}
	var paths []string
	for _, f := range files {
		paths = append(paths, f.info.Path)
		names[f.info.Path] = f.info.Path[len(storePath("")):]
	}
	valid, err := c.QueryValidPaths(c.t.Context(), paths, substitute, c.said.add)
	if err != nil {
		c.t.Fatal(err)
	}
	var got []string
	for _, path := range valid {
		got = append(got, names[path])
	}
	return strings.Join(got, "")
}

func TestQueryValidPaths(t *testing.T) {
	a, b, c := newFile("a", "A"), newFile("b", "B"), newFile("c", "C")
	tests := map[string]struct {
		stores [][]file // of each builder
		down   int      // the first so many are down
		want   string
	}{
		"no builders":           {nil, 0, ""},
		"the only one":          {[][]file{{a, b}}, 0, "ab"},
		"the only one, down":    {[][]file{{a, b}}, 1, ""},
		"one of two":            {[][]file{{a, b}, {b, c}}, 0, "b"},
		"two of three":          {[][]file{{a, b}, {b, c}, {c}}, 0, "bc"},
		"one of two, one down":  {[][]file{{a, b}, {a, b, c}}, 1, ""},
		"two of three, a third": {[][]file{{}, {a, b}, {b, c}}, 1, "b"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var machines []*machine
				for i, store := range tc.stores {
					m := newMachine(t, fmt.Sprint("m", i), daemontest.Options{}).has(store...)
					if i < tc.down {
						m.down()
					}
					machines = append(machines, m)
				}
				r := newRig(t, rigOptions{builders: machines})
				began := time.Now()
				if got := r.connect(1, "x86_64-linux.0").ask(false, a, b, c); got != tc.want {
					t.Errorf("there: %q, want %q", got, tc.want)
				}
				if took := time.Since(began); took > 0 {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

func TestOtherClassesAreNotAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newFile("a", "A")
		kvm := newMachine(t, "kvm", daemontest.Options{}, features("kvm"))
		plain := newMachine(t, "plain", daemontest.Options{}).has(a)
		r := newRig(t, rigOptions{builders: []*machine{kvm, plain}})
		if got := r.connect(1, "x86_64-linux.kvm.0").ask(false, a); got != "" {
			t.Errorf("there: %q, but not on a builder of the class", got)
		}
		if n := len(plain.Operations()); n != 0 {
			t.Errorf("%d operations on a builder of another class", n)
		}
	})
}

func TestSlowBuilderDoesNotStallClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newFile("a", "A")
		slow := newMachine(t, "slow", daemontest.Options{Before: daemontest.At(1, daemontest.Silent)}).has(a)
		one, two := newMachine(t, "one", daemontest.Options{}).has(a), newMachine(t, "two", daemontest.Options{})
		r := newRig(t, rigOptions{builders: []*machine{slow, one, two}})
		began := time.Now()
		if got := r.connect(1, "x86_64-linux.0").ask(false, a); got != "" {
			t.Errorf("there: %q", got)
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("the first question took %v, want the limit", took)
		}
		began = time.Now()
		two.has(a)
		if got := r.connect(2, "x86_64-linux.0").ask(false, a); got != "a" {
			t.Errorf("there: %q", got)
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("the second question took %v, want the slow one to be left out", took)
		}
		time.Sleep(tardyFor)
		began = time.Now()
		r.connect(3, "x86_64-linux.0").ask(false, newFile("x", "X"))
		if took := time.Since(began); took != time.Second {
			t.Errorf("after a while the question took %v, want the slow one to be asked again", took)
		}
	})
}

func TestEnoughAnswersEndTheQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newFile("a", "A")
		slow := newMachine(t, "slow", daemontest.Options{Before: daemontest.At(1, daemontest.Silent)})
		one, two := newMachine(t, "one", daemontest.Options{}).has(a), newMachine(t, "two", daemontest.Options{}).has(a)
		r := newRig(t, rigOptions{builders: []*machine{slow, one, two}})
		began := time.Now()
		if got := r.connect(1, "x86_64-linux.0").ask(false, a); got != "a" {
			t.Errorf("there: %q", got)
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("it took %v although two builders answered at once", took)
		}
	})
}

func TestSubstitutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newFile("a", "A"), newFile("b", "B")
		m := newMachine(t, "one", daemontest.Options{Substitutes: []string{a.info.Path}})
		r := newRig(t, rigOptions{builders: []*machine{m, newMachine(t, "two", daemontest.Options{Substitutes: []string{a.info.Path}})}})
		c := r.connect(1, "x86_64-linux.0")
		if got := c.ask(false, a, b); got != "" {
			t.Errorf("there without substitution: %q", got)
		}
		if got := c.ask(true, a, b); got != "a" {
			t.Errorf("there with substitution: %q, want a", got)
		}
		if _, _, ok := m.Path(a.info.Path); ok {
			t.Error("the question alone has made the builder fetch")
		}
		if err := c.send(b); err != nil {
			t.Fatal(err)
		}
		c.mustBuild(newDerivation("out", a, b))
	})
}

func TestTardiness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var late tardiness
		late.note("b")
		if got := late.prompt([]string{"a", "b", "c", "d"}, 2); !slices.Equal(got, []string{"a", "c"}) {
			t.Errorf("prompt: %v", got)
		}
		time.Sleep(tardyFor)
		if got := late.prompt([]string{"a", "b"}, 2); !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("prompt after a while: %v", got)
		}
	})
}

// The memory that a client can make the dispatcher use has a bound, however many requests
// it sends.
func TestTooManyInputs(t *testing.T) {
	t.Parallel()
	r := newRig(t, rigOptions{builders: []*machine{newMachine(t, "one", daemontest.Options{})}})
	c := r.connect(1, "x86_64-linux.0")
	paths := make([]string, maxInputs+1)
	for i := range paths {
		paths[i] = fmt.Sprintf("/nix/store/%032d-x", i)
	}
	const refusal = "more than 100000 store paths"
	for range 2 { // what was named before counts once
		if _, err := c.QueryValidPaths(t.Context(), paths[:maxInputs], false, nil); err != nil {
			t.Fatal(err)
		}
	}
	last := newFile("last", "L")
	d := newDerivation("out")
	d.InputSources = paths[maxInputs:]
	_, asked := c.QueryValidPaths(t.Context(), paths[maxInputs:], false, nil)
	_, built := c.build(d)
	for name, err := range map[string]error{"question": asked, "upload": c.send(last), "build": built} {
		if err == nil || !strings.Contains(err.Error(), refusal) {
			t.Errorf("%s: %v, want %q", name, err, refusal)
		}
	}
	c.mustBuild(newDerivation("out"))
}
