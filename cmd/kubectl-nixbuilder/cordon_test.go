// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/show"
)

// apiServer knows NixBuilder linux in namespace ci and no other; it returns a kubeconfig.
func apiServer(t *testing.T) string {
	t.Helper()
	const group = "nixbuilder.io/v1alpha1"
	object := `{"apiVersion":"` + group + `","kind":"NixBuilder","metadata":{"name":"linux","namespace":"ci"},"spec":{"endpoints":[{"name":"a","host":"a"}]}}`
	answers := map[string]string{
		"/api":  `{"kind":"APIVersions","versions":["v1"]}`,
		"/apis": `{"kind":"APIGroupList","groups":[{"name":"nixbuilder.io","versions":[{"groupVersion":"` + group + `","version":"v1alpha1"}]}]}`,
		"/apis/" + group: `{"kind":"APIResourceList","groupVersion":"` + group +
			`","resources":[{"name":"nixbuilders","kind":"NixBuilder","namespaced":true,"verbs":["get","list","patch"]}]}`,
		"/apis/" + group + "/namespaces/ci/nixbuilders":       `{"apiVersion":"` + group + `","kind":"NixBuilderList","items":[` + object + `]}`,
		"/apis/" + group + "/namespaces/ci/nixbuilders/linux": object,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		answer, ok := answers[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			answer = `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`
		}
		_, _ = fmt.Fprint(w, answer)
	}))
	t.Cleanup(server.Close)
	file := filepath.Join(t.TempDir(), "kubeconfig")
	config := `{"clusters":[{"name":"c","cluster":{"server":"` + server.URL + `"}}],"contexts":[{"name":"c","context":{"cluster":"c","namespace":"ci"}}],"current-context":"c"}`
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Where the second of two cannot be cordoned, the first is, and that is said.
func TestCordonHalfDone(t *testing.T) {
	t.Parallel()
	kubeconfig := apiServer(t)
	for output, want := range map[string]string{"": "linux is cordoned\n", "json": `"name": "linux"`} {
		args := []string{"cordon", "linux", "mac", "--reason", "x", "--kubeconfig", kubeconfig}
		if output != "" {
			args = append(args, "-o", output)
		}
		got := runProgram(t, args...)
		if got.status != statusUnclear || !strings.Contains(got.stdout, want) ||
			got.stderr != "error: get NixBuilder mac in namespace ci: there is none of that name\n" {
			t.Errorf("%q: %+v", output, got)
		}
	}
}

// What a server or a file has its part in is not sent to the terminal as it is.
func TestErrorsAreClean(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "machines")
	if err := os.WriteFile(file, []byte("ssh-ng://a \x1b]0;x\x07 - - -\x1b[2J\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"doctor", "--machines", file}, {"cordon", "a\x1b[2J/b/c", "--reason", "x", "--kubeconfig", apiServer(t)}, {"\x1b[2J"}} {
		if got := runProgram(t, args...); got.status == 0 || strings.ContainsAny(got.stdout+got.stderr, "\x1b\x07") {
			t.Errorf("%q: %+v", args, got)
		}
	}
}

// A machine under the cordon of its builder is not called uncordoned.
func TestUncordonInWords(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		subject cordonedSubject
		want    string
	}{
		"uncordoned":               {cordonedSubject{Name: "linux/a", Changed: true}, "linux/a is uncordoned\n"},
		"not cordoned":             {cordonedSubject{Name: "linux/a"}, "linux/a is not cordoned\n"},
		"one of a cordoned":        {cordonedSubject{Name: "linux/a", Note: "stays"}, "linux/a has no cordon of its own\n  stays\n"},
		"one no longer by itself":  {cordonedSubject{Name: "linux/a", Changed: true, Note: "stays"}, "linux/a has no cordon of its own any more\n  stays\n"},
		"all, but for one of them": {cordonedSubject{Name: "linux", Changed: true, Note: "these stay"}, "linux is uncordoned\n  these stay\n"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out strings.Builder
			tc.subject.print(show.New(&out, os.Getenv))
			if out.String() != tc.want {
				t.Errorf("%q, want %q", out.String(), tc.want)
			}
		})
	}
}
