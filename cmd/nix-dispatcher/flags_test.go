// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"flag"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestFlags(t *testing.T) {
	t.Parallel()
	o, err := parseFlags([]string{"-spool-max-size=512Mi", "-spooled-output-max-size", "7", "-log-format=json", "-log-level=debug"})
	if err != nil {
		t.Fatal(err)
	}
	if o.spoolSize != 512<<20 || o.spooledOutput != 7 || o.volume != defaultVolume || o.builders != "/etc/nix-machines/builders.json" {
		t.Errorf("options = %+v", o)
	}
	tests := map[string]struct {
		args []string
		want string
	}{
		"argument":      {[]string{"x"}, `unexpected argument "x"`},
		"size":          {[]string{"-spool-max-size=10G"}, "positive number"},
		"size zero":     {[]string{"-spool-max-size=0"}, "positive number"},
		"size overflow": {[]string{"-spool-max-size=9999999Ti"}, "positive number"},
		"format":        {[]string{"-log-format=xml"}, "text or json"},
		"level":         {[]string{"-log-level=loud"}, "--log-level=loud: must be debug, info, warn or error (see nix-dispatcher --help)"},
		"no unit":       {[]string{"-connect-timeout=15"}, "--connect-timeout=15: needs a unit, such as 15s"},
		"no time":       {[]string{"-connect-timeout", "soon"}, "--connect-timeout=soon: must be a time"},
		"no number":     {[]string{"-max-lines=many"}, "--max-lines=many: must be a whole number"},
		"lines":         {[]string{"-max-lines=0"}, "at least 1"},
		"timeout":       {[]string{"-connect-timeout=0s"}, "positive"},
		"log size":      {[]string{"-max-log-size=lots"}, "--max-log-size=lots: must be a positive number"},
		"negative":      {[]string{"-build-timeout=-1s"}, "--build-timeout must not be negative"},
		"client":        {[]string{"-client-timeout=0s"}, "--client-timeout must be positive"},
		"relative":      {[]string{"-volume=x"}, "absolute"},
		"unknown":       {[]string{"-x"}, "not defined"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := parseFlags(tc.args); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want one with %q", err, tc.want)
			}
		})
	}
	if _, err := parseFlags([]string{"-volume=x", "-client-path=/nix-dispatch"}); err != nil {
		t.Errorf("a relative directory with an absolute client path: %v", err)
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	o, err := parseFlags([]string{"-max-silent-time=1m", "-build-timeout=1h", "-max-log-size=3Mi", "-wait-timeout=2m", "-client-timeout=3m", "-orphan-grace=0s"})
	if err != nil {
		t.Fatal(err)
	}
	got := o.dispatchLimits()
	if got.Silence != time.Minute || got.Duration != time.Hour || got.Log != 3<<20 || got.Stall != 3*time.Minute || got.OrphanGrace != 0 || o.limits.wait != duration(2*time.Minute) {
		t.Errorf("limits = %+v, waiting %v", got, o.limits.wait)
	}
	o, err = parseFlags([]string{"-max-log-size=0"})
	if got := o.dispatchLimits(); err != nil || got.Silence != 0 || got.Duration != 0 || got.Log != 0 || got.OrphanGrace != 2*time.Minute {
		t.Errorf("defaults = %+v, %v", got, err)
	}
}

func TestByteSize(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]byteSize{"1": 1, "1536": 1536, "1Ki": 1 << 10, "3Mi": 3 << 20, "10Gi": 10 << 30, "2Ti": 2 << 40} {
		var b byteSize
		if err := b.Set(text); err != nil || b != want {
			t.Errorf("Set(%q) = %d, %v, want %d", text, b, err, want)
		}
		var back byteSize
		if err := back.Set(b.String()); err != nil || back != b {
			t.Errorf("%q reads back as %d, %v", b.String(), back, err)
		}
	}
}

func TestUnknownCommand(t *testing.T) {
	t.Parallel()
	if err := run(t.Context(), []string{"start"}); err == nil || !strings.Contains(err.Error(), `unknown command "start"`) {
		t.Errorf("error = %v", err)
	}
	if err := run(t.Context(), []string{"version"}); err != nil {
		t.Error(err)
	}
	for _, command := range []string{"version", "ready"} {
		if err := run(t.Context(), []string{command, "extra"}); err == nil || !strings.Contains(err.Error(), `"extra"`) {
			t.Errorf("%s extra: %v", command, err)
		}
	}
}

// TestFlagsAreDocumented keeps the table of flags in the documentation complete.
func TestFlagsAreDocumented(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/dispatcher.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `--([a-z-]+)` \\| (.*?) \\|").FindAllStringSubmatch(string(doc), -1) {
		documented[m[1]] = strings.Trim(m[2], "`")
	}
	var o options
	o.flagSet().VisitAll(func(f *flag.Flag) {
		value, ok := documented[f.Name]
		if !ok {
			t.Errorf("--%s is not in docs/dispatcher.md", f.Name)
		}
		if f.Name != "helper" && value != f.DefValue && (f.DefValue != "" || value != "none") {
			t.Errorf("--%s: documented default %q, want %q", f.Name, value, f.DefValue)
		}
		delete(documented, f.Name)
	})
	for name := range documented {
		t.Errorf("docs/dispatcher.md has --%s, which does not exist", name)
	}
}
