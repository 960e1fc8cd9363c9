// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"nixbuilder.io/nix-builder-operator/controllers"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
	"nixbuilder.io/nix-builder-operator/internal/version"
)

// Tests that define the flags are not parallel: --kubeconfig is stored in a
// variable of controller-runtime's.

func TestParse(t *testing.T) {
	tests := map[string]struct {
		arguments []string
		get       func(*options) string
		want      string
		wantError string
	}{
		"namespaces":           {arguments: []string{"--watch-namespaces=ci, nightly,"}, get: func(o *options) string { return o.watchNamespaces.String() }, want: "ci,nightly"},
		"no namespaces":        {get: func(o *options) string { return o.watchNamespaces.String() }},
		"denied ranges":        {arguments: []string{"--denied-ranges=10.1.2.3/8,fd00::/8"}, get: func(o *options) string { return o.deniedRanges.String() }, want: "10.0.0.0/8,fd00::/8"},
		"no denied ranges":     {arguments: []string{"--denied-ranges="}, get: func(o *options) string { return o.deniedRanges.String() }},
		"a bad range":          {arguments: []string{"--denied-ranges=10.1.2.3"}, wantError: `"10.1.2.3" is no address range such as 10.0.0.0/8`},
		"kept connections":     {get: func(o *options) string { return fmt.Sprint(o.keptConnections) }, want: "true"},
		"no kept connections":  {arguments: []string{"--kept-connections=false"}, get: func(o *options) string { return fmt.Sprint(o.keptConnections) }, want: "false"},
		"an argument":          {arguments: []string{"start"}, wantError: `unexpected argument "start"`},
		"an unknown flag":      {arguments: []string{"--colour"}, wantError: "flag provided but not defined"},
		"negative concurrency": {arguments: []string{"--probe-concurrency=-1"}, wantError: "must not be negative"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			o, err := parse(tc.arguments, &bytes.Buffer{})
			if tc.wantError != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantError) {
					t.Errorf("parse() error = %v, want %q", err, tc.wantError)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := tc.get(o); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestDefaultDeniedRanges(t *testing.T) {
	o, err := parse(nil, &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	if len(o.deniedRanges) != len(sshconn.DefaultDenied()) {
		t.Errorf("denied by default: %s", o.deniedRanges.String())
	}
}

func TestFlagsAreDocumented(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "flags.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n## manager\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var documented, defined []string
	for _, row := range regexp.MustCompile("(?m)^\\| `--([a-z-]+)` ").FindAllStringSubmatch(section, -1) {
		documented = append(documented, row[1])
	}
	(&options{}).flagSet().VisitAll(func(f *flag.Flag) { defined = append(defined, f.Name) })
	slices.Sort(documented)
	if diff := cmp.Diff(defined, documented); diff != "" {
		t.Errorf("docs/flags.md (-defined +documented):\n%s", diff)
	}
}

func TestLogger(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		level, format   string
		wantLevels      []string // of error, info, V(1), V(4), V(8)
		wantBeginning   string
		wantParserError string
	}{
		"error":          {level: "error", format: "json", wantLevels: []string{"error"}, wantBeginning: `{"time"`},
		"info":           {level: "info", format: "json", wantLevels: []string{"error", "info"}, wantBeginning: `{"time"`},
		"debug":          {level: "debug", format: "console", wantLevels: []string{"error", "info", "V1", "V4"}, wantBeginning: "time="},
		"unknown level":  {level: "trace", format: "json", wantParserError: "it must be error, info or debug"},
		"unknown format": {level: "info", format: "xml", wantParserError: "it must be json or console"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var output bytes.Buffer
			logger, err := newLogger(tc.level, tc.format, &output)
			if tc.wantParserError != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantParserError) {
					t.Errorf("error = %v, want %q", err, tc.wantParserError)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := levelsOf(logger, &output); !slices.Equal(got, tc.wantLevels) {
				t.Errorf("logs %v, want %v", got, tc.wantLevels)
			}
			if !strings.HasPrefix(output.String(), tc.wantBeginning) {
				t.Errorf("log begins with %.20q, want %q", output.String(), tc.wantBeginning)
			}
		})
	}
}

// levelsOf logs on every level and returns those that are shown. V(8) is where
// client-go begins to log what it sends and receives.
func levelsOf(logger logr.Logger, output *bytes.Buffer) []string {
	logger.Error(errors.New("x"), "mark-error")
	logger.Info("mark-info")
	logger.V(1).Info("mark-V1")
	logger.V(4).Info("mark-V4")
	logger.V(8).Info("mark-V8")
	var shown []string
	for _, level := range []string{"error", "info", "V1", "V4", "V8"} {
		if strings.Contains(output.String(), "mark-"+level) {
			shown = append(shown, level)
		}
	}
	return shown
}

func TestRunPrintsVersion(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if err := run(t.Context(), []string{"--version"}, &stdout, &stderr); err != nil {
		t.Fatal(err)
	}
	if got := stdout.String(); got != version.String()+"\n" {
		t.Errorf("printed %q", got)
	}
}

func TestReadinessDependsOnTheCRDOnce(t *testing.T) {
	t.Parallel()
	scheme, err := controllers.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	away := true
	reader := interceptor.NewClient(fake.NewClientBuilder().WithScheme(scheme).Build(), interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			if away {
				return errors.New("no matches for kind")
			}
			return c.List(ctx, list, opts...)
		},
	})
	check := served(reader, []string{"ci"})
	request := httptest.NewRequest(http.MethodGet, "/readyz", nil)
	if err := check(request); err == nil || !strings.Contains(err.Error(), "is the CRD installed?") {
		t.Errorf("without the CRD: %v", err)
	}
	away = false
	if err := check(request); err != nil {
		t.Errorf("with the CRD: %v", err)
	}
	away = true
	if err := check(request); err != nil {
		t.Errorf("while the API server is away later: %v", err)
	}
}
