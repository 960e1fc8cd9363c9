// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

func TestInputFromAnotherBuilder(t *testing.T) {
	tests := map[string]int64{"through the spool": 1 << 20, "passed through": 300}
	for name, size := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newFile("a", strings.Repeat("A", 400))
				b := newFile("b", strings.Repeat("B", 400), a.info.Path)
				one := newMachine(t, "one", daemontest.Options{}).has(a, b)
				two := newMachine(t, "two", daemontest.Options{}).has(a, b)
				three := newMachine(t, "three", daemontest.Options{}, slots(8))
				r := newRig(t, rigOptions{builders: []*machine{one, two, three}, spool: size})
				c := r.connect(1, "x86_64-linux.0")
				// Named in the wrong order, as sets are.
				if got := c.ask(false, b, a); got != "ba" {
					t.Fatalf("there: %q", got)
				}
				one.cordon()
				two.cordon()
				r.use(one, two, three)
				c.mustBuild(newDerivation("out", b))
				if len(three.Builds()) != 1 {
					t.Fatal("it was built elsewhere than on the largest builder")
				}
				if _, _, ok := three.Path(a.info.Path); !ok {
					t.Error("the builder lacks what an input refers to")
				}
			})
		})
	}
}

func TestInputThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newFile("a", "A")
		m := newMachine(t, "one", daemontest.Options{}).has(a)
		r := newRig(t, rigOptions{builders: []*machine{m}})
		c := r.connect(1, "x86_64-linux.0")
		if got := c.ask(false, a); got != "a" {
			t.Fatalf("there: %q", got)
		}
		m.Delete(a.info.Path) // garbage collection, before anything was said of the build
		_, err := c.build(newDerivation("out", a))
		if err == nil || !strings.Contains(err.Error(), a.info.Path) || !strings.Contains(err.Error(), "start the build again") {
			t.Errorf("error = %v", err)
		}
	})
}

// Nix 2.8 does not read the NAR of a path that somebody else has brought meanwhile, and
// complains of what it takes for the next path.
func TestInputThatSomebodyElseBrings(t *testing.T) {
	tests := map[string]struct {
		brought bool
		want    string // empty: the build succeeds
		refused int
	}{
		"meanwhile":      {brought: true, refused: 1},
		"but not at all": {want: "not an absolute path", refused: 4}, // once in each try
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := newFile("a", "A"), newFile("b", "B")
				var m *machine
				refused := 0
				m = newMachine(t, "one", daemontest.Options{Before: func(_ context.Context, call daemontest.Call) error {
					if call.Request.Operation() != daemon.OpAddMultipleToStore || refused > 0 && tc.brought {
						return nil
					}
					refused++
					if tc.brought {
						m.has(a)
					}
					return errors.New("not an absolute path: 'nix-archive-1'")
				}})
				r := newRig(t, rigOptions{builders: []*machine{m}})
				c := r.connect(1, "x86_64-linux.0")
				c.upload(a, b)
				_, err := c.build(newDerivation("out", a, b))
				if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
					t.Errorf("error = %v, want one with %q", err, tc.want)
				}
				if refused != tc.refused {
					t.Errorf("%d transfers were refused, want %d", refused, tc.refused)
				}
			})
		})
	}
}

// item is a parcel of which only path and references matter.
func item(name string, refs ...string) parcel {
	var paths []string
	for _, ref := range refs {
		paths = append(paths, storePath(ref))
	}
	return parcel{info: daemon.PathInfo{Path: storePath(name), References: paths}}
}

func TestInOrder(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		in   []parcel
		want string
	}{
		"none":            {nil, ""},
		"as given":        {[]parcel{item("a"), item("b"), item("c")}, "abc"},
		"reversed":        {[]parcel{item("c", "b"), item("b", "a"), item("a")}, "abc"},
		"self":            {[]parcel{item("b", "b", "a"), item("a", "a")}, "ab"},
		"others":          {[]parcel{item("b", "x"), item("a", "y")}, "ba"},
		"named twice":     {[]parcel{item("b", "a", "a"), item("a")}, "ab"},
		"diamond":         {[]parcel{item("d", "b", "c"), item("c", "a"), item("b", "a"), item("a")}, "acbd"},
		"cycle, as given": {[]parcel{item("a", "b"), item("b", "a"), item("c")}, "abc"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got strings.Builder
			for _, p := range inOrder(tc.in) {
				got.WriteString(p.info.Path[len(storePath("")):])
			}
			if got.String() != tc.want {
				t.Errorf("order %q, want %q", got.String(), tc.want)
			}
		})
	}
}
