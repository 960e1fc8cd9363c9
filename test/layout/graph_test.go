// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package layout

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// root is the module's directory, seen from this package's.
const root = "../.."

func TestImports(t *testing.T) {
	t.Parallel()
	graph, err := Load(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	if len(graph) == 0 {
		t.Fatal("go list found no packages")
	}
	for _, message := range Check(graph, Rules()) {
		t.Error(message)
	}
}

func TestRulesAreAlive(t *testing.T) {
	t.Parallel()
	graph, err := Load(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range Rules() {
		for _, pattern := range rule.Packages {
			if !matchesPackageOf(graph, pattern) {
				t.Errorf("a rule is about %s, which does not exist", pattern)
			}
		}
	}
}

func matchesPackageOf(graph Graph, pattern string) bool {
	for importPath := range graph {
		if _, ours := relative(importPath); ours && matches(pattern, importPath) {
			return true
		}
	}
	return false
}

// graphOf makes a graph from lines "package: import import…". A package
// without dots in its first element that is not of the module is standard.
func graphOf(lines ...string) Graph {
	graph := Graph{}
	add := func(name string) string {
		standard := false
		switch first, _, _ := strings.Cut(name, "/"); {
		case first == "api", first == "cmd", first == "controllers", first == "hack", first == "internal", first == "pkg", first == "test":
			name = Module + "/" + name
		case !strings.Contains(first, "."):
			standard = true
		}
		p := graph[name]
		p.ImportPath, p.Standard = name, standard
		graph[name] = p
		return name
	}
	for _, line := range lines {
		name, imports, _ := strings.Cut(line, ":")
		name = add(name)
		p := graph[name]
		for _, imported := range strings.Fields(imports) {
			p.Imports = append(p.Imports, add(imported))
		}
		graph[name] = p
	}
	return graph
}

func TestCheck(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		graph []string
		want  []string // beginnings of the messages
	}{
		"clean": {
			graph: []string{
				"api/v1alpha1: k8s.io/api/core/v1 k8s.io/apimachinery/pkg/runtime fmt",
				"internal/nix/wire: io",
				"internal/nix/daemon: internal/nix/wire",
				"internal/dispatch: internal/nix/daemon internal/sshconn",
				"internal/sshconn: golang.org/x/crypto/ssh",
				"controllers/nixbuilder: api/v1alpha1 controllers/internal/patch sigs.k8s.io/controller-runtime",
				"controllers: controllers/nixbuilder",
				"cmd/manager: controllers",
				"hack/demo: test/nixlab",
			},
		},
		"import that is not allowed": {
			graph: []string{"internal/nix/wire: internal/nix/storepath"},
			want:  []string{"internal/nix/wire must not import internal/nix/storepath: formats"},
		},
		"API types with a client": {
			graph: []string{"api/v1alpha1: sigs.k8s.io/controller-runtime/pkg/scheme"},
			want:  []string{"api/v1alpha1 must not import sigs.k8s.io/controller-runtime/pkg/scheme: programs"},
		},
		"scheduler with a network": {
			graph: []string{"internal/scheduler: net/http"},
			want:  []string{"internal/scheduler must not import net/http: placement"},
		},
		"dispatcher that reaches Kubernetes by another package": {
			graph: []string{
				"cmd/nix-dispatcher: internal/dispatch",
				"internal/dispatch: internal/probe",
				"internal/probe: internal/sshconn",
				"internal/sshconn: golang.org/x/crypto/ssh",
				"golang.org/x/crypto/ssh: k8s.io/client-go/rest",
				"k8s.io/client-go/rest: k8s.io/apimachinery/pkg/runtime",
			},
			want: []string{
				"cmd/nix-dispatcher must not reach k8s.io/client-go/rest: the dispatcher runs without a cluster and must not be stopped by one (by cmd/nix-dispatcher → internal/dispatch → internal/probe → internal/sshconn → golang.org/x/crypto/ssh → k8s.io/client-go/rest)",
				"internal/dispatch must not reach k8s.io/client-go/rest",
				"internal/probe must not reach k8s.io/client-go/rest",
			},
		},
		"helper with a library": {
			graph: []string{
				"cmd/nix-dispatch-connect: internal/connect",
				"internal/connect: golang.org/x/sys/unix",
			},
			want: []string{
				"cmd/nix-dispatch-connect must not reach golang.org/x/sys/unix",
				"internal/connect must not import golang.org/x/sys/unix",
			},
		},
		"controller that dials": {
			graph: []string{"controllers/nixbuilder: internal/sshconn"},
			want:  []string{"controllers/nixbuilder must not import internal/sshconn: controllers never dial"},
		},
		"controller that imports another": {
			graph: []string{"controllers/machines: controllers/nixbuilder"},
			want:  []string{"controllers/machines must not import controllers/nixbuilder"},
		},
		"controller that imports setup": {
			graph: []string{"controllers/machines: controllers"},
			want:  []string{"controllers/machines must not import controllers: setup"},
		},
		"shipped code that uses test code": {
			graph: []string{"cmd/manager: test/envtest"},
			want:  []string{"cmd/manager must not import test/envtest: what tests"},
		},
		"package that no rule knows": {
			graph: []string{"internal/novelty: fmt"},
			want:  []string{"internal/novelty: no import rule"},
		},
		"names that say nothing": {
			graph: []string{"pkg/client: fmt", "controllers/internal/utils: fmt"},
			want: []string{
				"controllers/internal/utils: name a package",
				"pkg/client: no import rule",
				"pkg/client: there is no pkg/",
			},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := Check(graphOf(tc.graph...), Rules())
			for i := range min(len(got), len(tc.want)) {
				if strings.HasPrefix(got[i], tc.want[i]) {
					got[i] = tc.want[i]
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("messages (-want +got):\n%s", diff)
			}
		})
	}
}

func TestMatches(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		pattern, importPath string
		want                bool
	}{
		"itself":                     {"internal/probe", Module + "/internal/probe", true},
		"below, not asked for":       {"internal/probe", Module + "/internal/probe/x", false},
		"below":                      {"internal/probe/...", Module + "/internal/probe/x", true},
		"itself with below":          {"internal/probe/...", Module + "/internal/probe", true},
		"longer name":                {"internal/probe/...", Module + "/internal/prober", false},
		"one element":                {"controllers/*/...", Module + "/controllers/a", true},
		"one element is missing":     {"controllers/*/...", Module + "/controllers", false},
		"of another module":          {"k8s.io/api/...", "k8s.io/api/core/v1", true},
		"other module of that start": {"k8s.io/api/...", "k8s.io/apimachinery", false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := matches(tc.pattern, tc.importPath); got != tc.want {
				t.Errorf("matches(%q, %q) = %t", tc.pattern, tc.importPath, got)
			}
		})
	}
}
