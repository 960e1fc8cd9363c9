// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package statuspage

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// serve answers one request with a page about d.
func serve(t *testing.T, d Document, method, host, path string) *http.Response {
	t.Helper()
	handler, err := New(Options{Read: func() Document { return d }})
	if err != nil {
		t.Fatal(err)
	}
	request := httptest.NewRequest(method, "http://"+host+path, nil)
	recorded := httptest.NewRecorder()
	handler.ServeHTTP(recorded, request)
	return recorded.Result()
}

// body returns a page as text.
func body(t *testing.T, d Document, path string) string {
	t.Helper()
	response := serve(t, d, http.MethodGet, "localhost:9465", path)
	if response.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s", path, response.Status)
	}
	var text strings.Builder
	if err := response.Write(&text); err != nil {
		t.Fatal(err)
	}
	return text.String()
}

func TestPage(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		document Document
		path     string
		want     []string
		not      []string
	}{
		"everything": {document: sample(), path: "/", want: []string{
			"<title>2 running, 1 waiting · nix-dispatcher</title>", "up 3 d 4 h", "14:02:11 UTC", `content="5"`,
			"5 of 8 slots in use, 1 orphaned", "the longest for 1 min 23 s", ">1<small> / 3</small>",
			"healthy, 1 down, 1 cordoned", "1.8 GiB of 10 GiB, 214 paths",
			"refuses connections since 13:58 (4 min)", "disk swap until 16:02", "5 of 8", "1 orphaned</span>", "apple-sdk (mandatory)",
			"1 + 2 bulk", "5 busy, 2 ready", "openssl-3.5.1 <code>h4s2k1lq</code>", "2 clients", "lost on linux/linux-2",
			"5 min 12 s", ">none is known<",
		}, not: []string{"is stopping", "<script"}},
		"nothing": {document: Document{Time: moment}, path: "/", want: []string{
			"No builders are known", "No build waits.", "No build runs.", "0 B of 0 B",
		}},
		"stopping": {document: Document{Time: moment, Stopping: true}, path: "/", want: []string{"The dispatcher is stopping."}},
		"held":     {document: sample(), path: "/?refresh=off", want: []string{"not refreshed"}, not: []string{"http-equiv"}},
		"too many": {
			document: Document{Time: moment, Running: make([]Build, maxRows+7), Waiting: make([]Build, 3*maxRows)}, path: "/",
			want: []string{"<title>207 running", "7 more are in", "400 more are in", fmt.Sprintf(">%d</p>", maxRows+7)},
		},
		"names that are markup": {
			document: Document{Time: moment, Running: []Build{{Name: `<script>alert("x")</script>`, Derivation: `"><b>`}}}, path: "/",
			want: []string{"&lt;script&gt;"}, not: []string{"<script", `"><b>`},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			page := body(t, tc.document, tc.path)
			for _, want := range tc.want {
				if !strings.Contains(page, want) {
					t.Errorf("the page lacks %q", want)
				}
			}
			for _, not := range tc.not {
				if strings.Contains(page, not) {
					t.Errorf("the page has %q", not)
				}
			}
			if t.Failed() {
				t.Log(page)
			}
		})
	}
}

func TestRequests(t *testing.T) {
	t.Parallel()
	const here = "127.0.0.1:9465"
	tests := map[string]struct {
		method, host, path string
		want               int
	}{
		"page":                   {http.MethodGet, here, "/", http.StatusOK},
		"head":                   {http.MethodHead, here, "/status.json", http.StatusOK},
		"forwarded port":         {http.MethodGet, "localhost:8080", "/", http.StatusOK},
		"no port":                {http.MethodGet, "LOCALHOST", "/", http.StatusOK},
		"IPv6":                   {http.MethodGet, "[::1]:9465", "/", http.StatusOK},
		"IPv6 without port":      {http.MethodGet, "[::1]", "/", http.StatusOK},
		"name that points here":  {http.MethodGet, "rebound.example:9465", "/", http.StatusMisdirectedRequest},
		"address of elsewhere":   {http.MethodGet, "192.0.2.1:9465", "/status.json", http.StatusMisdirectedRequest},
		"name that ends in ours": {http.MethodGet, "localhost.example", "/", http.StatusMisdirectedRequest},
		"post":                   {http.MethodPost, here, "/", http.StatusMethodNotAllowed},
		"delete":                 {http.MethodDelete, here, "/status.json", http.StatusMethodNotAllowed},
		"unknown":                {http.MethodGet, here, "/metrics", http.StatusNotFound},
		"file of the source":     {http.MethodGet, here, "/page.html", http.StatusNotFound},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			response := serve(t, sample(), tc.method, tc.host, tc.path)
			if response.StatusCode != tc.want {
				t.Errorf("status %s, want %d", response.Status, tc.want)
			}
			policy := response.Header.Get("Content-Security-Policy")
			if !strings.HasPrefix(policy, "default-src 'none';") || strings.Contains(policy, "unsafe") {
				t.Errorf("Content-Security-Policy %q", policy)
			}
			if got := response.Header.Get("X-Content-Type-Options"); got != "nosniff" {
				t.Errorf("X-Content-Type-Options %q", got)
			}
		})
	}
}

// The page needs nothing but what the policy allows and this server has.
func TestEverythingIsServed(t *testing.T) {
	t.Parallel()
	page := body(t, sample(), "/")
	links := regexp.MustCompile(`(?:href|src)="([^"]*)"`).FindAllStringSubmatch(page, -1)
	if len(links) < 4 {
		t.Fatalf("links %q", links)
	}
	for _, link := range links {
		path, found := strings.CutPrefix(link[1], "/")
		if !found || strings.HasPrefix(path, "/") {
			t.Errorf("%s is elsewhere", link[1])
			continue
		}
		body(t, sample(), link[1])
	}
	for _, inline := range []string{" style=", "<style", " onclick", "javascript:"} {
		if strings.Contains(page, inline) {
			t.Errorf("the page has %q, which its policy forbids", inline)
		}
	}
}

// documented is how docs/observe.md lists a field of the JSON.
var documented = regexp.MustCompile("(?m)^\\| `([a-zA-Z.\\[\\]]+)` \\|")

func TestJSON(t *testing.T) {
	t.Parallel()
	response := serve(t, sample(), http.MethodGet, "localhost", "/status.json")
	if got := response.Header.Get("Content-Type"); got != "application/json" {
		t.Errorf("Content-Type %q", got)
	}
	var back Document
	decoder := json.NewDecoder(response.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&back); err != nil {
		t.Fatal(err)
	}
	want := complete(sample())
	if diff := cmp.Diff(want, back); diff != "" {
		t.Errorf("document (-want +got):\n%s", diff)
	}

	empty := serve(t, Document{}, http.MethodGet, "localhost", "/status.json")
	var fields map[string]any
	if err := json.NewDecoder(empty.Body).Decode(&fields); err != nil {
		t.Fatal(err)
	}
	for _, list := range []string{"builders", "running", "waiting"} {
		if _, ok := fields[list].([]any); !ok {
			t.Errorf("%s = %v, want a list", list, fields[list])
		}
	}
}

// The fields that people build upon are all documented, and no others.
func TestJSONIsDocumented(t *testing.T) {
	t.Parallel()
	full := sample()
	full.Builders[0].Reason, full.Builders[0].Since, full.Builders[0].Until = "x", moment, moment
	text, err := json.Marshal(complete(full))
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]any
	if err := json.Unmarshal(text, &tree); err != nil {
		t.Fatal(err)
	}
	want := fieldNames("", tree)
	// What all builds have is documented once.
	want = slices.DeleteFunc(want, func(name string) bool {
		common, found := strings.CutPrefix(name, "waiting[]")
		return found && slices.Contains(want, "running[]"+common)
	})
	doc, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "observe.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(doc), "\n### status.json\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var got []string
	for _, row := range documented.FindAllStringSubmatch(section, -1) {
		got = append(got, row[1])
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("docs/observe.md (-format +documented):\n%s", diff)
	}
}

// fieldNames lists the paths of all fields below value: "builders[].id".
func fieldNames(path string, value any) []string {
	var names []string
	switch v := value.(type) {
	case map[string]any:
		for name, field := range v {
			if path != "" {
				name = path + "." + name
			}
			names = append(names, fieldNames(name, field)...)
		}
	case []any:
		if len(v) > 0 {
			if _, ok := v[0].(map[string]any); ok {
				return fieldNames(path+"[]", v[0])
			}
		}
		return []string{path}
	default:
		return []string{path}
	}
	slices.Sort(names)
	return names
}

// However many look, the dispatcher is asked now and then only.
func TestReadNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads := 0
		handler, err := New(Options{Read: func() Document { reads++; return sample() }})
		if err != nil {
			t.Fatal(err)
		}
		look := func() {
			handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "http://localhost/", nil))
		}
		for range 5 {
			look()
		}
		if reads != 1 {
			t.Errorf("%d reads at once, want 1", reads)
		}
		time.Sleep(freshness)
		look()
		if reads != 2 {
			t.Errorf("%d reads after a while, want 2", reads)
		}
	})
}
