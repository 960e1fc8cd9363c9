// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chaos

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

const (
	// outputBytes is the size of each of the two outputs, far above what is
	// spooled there, and outputRate the speed of the line that they come over.
	outputBytes = 4 << 20
	outputRate  = 2 << 20
)

// TestOutputs has a builder die when the client has the first of two large outputs
// and waits for the second. The build runs again elsewhere; but the outputs of two
// runs belong together only if runs do not differ.
func TestOutputs(t *testing.T) {
	requireLab(t)
	tests := map[string]struct {
		// line is what each run begins both outputs with.
		line string
		// after is how long the second output is on its way when the builder dies.
		after time.Duration
		// wantError is what the client is told; empty for the right outputs.
		wantError string
	}{
		"of a build that gives the same twice": {line: "always the same", after: 300 * time.Millisecond},
		"of a build that never does": {
			line: "$(cat /proc/sys/kernel/random/uuid)", after: 300 * time.Millisecond, wantError: "outputs of two runs must not be mixed",
		},
		// Nothing of the second has been sent: the error takes its place.
		"of one that is told so": {line: "$(cat /proc/sys/kernel/random/uuid)", wantError: "outputs of two runs must not be mixed"},
	}
	clients := nixlab.Versions()
	if *durationFlag < time.Minute {
		clients = clients[len(clients)-1:] // among many other tests
	}
	w := newWorld(t, worldOptions{
		builders: nixlab.Versions(), clients: clients, slots: 1, flags: []string{"--spooled-output-max-size=1Mi"},
	})
	number := 0
	for name, tc := range tests {
		for _, c := range w.clients {
			number++
			drv := fmt.Sprintf("two-outputs-%d", number)
			t.Run(fmt.Sprintf("%s, client with Nix %s", name, c.Nix()), func(t *testing.T) {
				result := dieBetweenOutputs(t, w, c, drv, tc.line, tc.after)
				first := firstLines(t, c, drv)
				switch {
				case tc.wantError == "" && result.Status != 0:
					t.Errorf("status %d:\n%s", result.Status, result.text)
				case tc.wantError == "" && len(first) != 2:
					t.Errorf("the client has %d of 2 outputs", len(first))
				case tc.wantError != "" && (result.Status == 0 || !strings.Contains(result.text, tc.wantError)):
					t.Errorf("status %d, want an error with %q:\n%s", result.Status, tc.wantError, result.text)
				}
				if len(first) == 2 && first[0] != first[1] {
					t.Errorf("outputs of two runs are mixed: one begins with %q, the other with %q", first[0], first[1])
				}
			})
		}
	}
	w.settle(t, usage{})
	w.end(t)
}

// dieBetweenOutputs builds, kills the builder while the client fetches the second
// output, and returns how the build has ended.
func dieBetweenOutputs(t *testing.T, w *world, c *client, drv, line string, after time.Duration) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), buildPatience)
	defer cancel()
	if err := w.allUp(ctx); err != nil {
		t.Fatal(err)
	}
	for _, b := range w.builders {
		if err := b.limit(ctx, 0, outputRate); err != nil {
			t.Fatal(err)
		}
	}
	placed := make(chan string, 10)
	defer w.dispatcher.log.watch(func(r record) {
		if r.Message == builtMessage && derivationName(r.Derivation) == drv {
			placed <- r.Builder
		}
	})()
	r := c.start(ctx, twoOutputs(drv, line))
	// Outputs of this size are announced as they begin, one after the other.
	err := eventually(ctx, phasePatience, "the second output to be on its way", func() error {
		if begun := regexp.MustCompile(`copying path '[^']*-`+drv+`(-dev)?' from`).FindAllString(r.output.String(), -1); len(begun) < 2 {
			return fmt.Errorf("begun: %q", begun)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%v; nix-build printed:\n%s", err, r.output.String())
	}
	time.Sleep(after)
	victim := w.byID(<-placed)
	victim.kill("between two outputs of " + drv)
	for _, b := range w.builders {
		if err := b.limit(ctx, 0, 0); err != nil {
			t.Error(err)
		}
	}
	result, err := r.wait()
	if err != nil {
		t.Error(err)
	}
	if err := victim.revive(t.Context()); err != nil {
		t.Fatal(err)
	}
	return result
}

// twoOutputs is a derivation with two outputs of the line and much behind it.
func twoOutputs(name, line string) string {
	script := fmt.Sprintf(`line="%s"; for o in $out $dev; do { echo "$line"; yes $name | head -c %d; } > $o; done`, line, outputBytes)
	return fmt.Sprintf(`derivation { name = %q; system = %q; builder = "/bin/sh"; PATH = "/usr/bin:/bin";
		outputs = [ "out" "dev" ]; args = [ "-euc" ''%s'' ]; }`, name, nixlab.System(), script)
}

// firstLines returns the first lines of those outputs that the client's Nix takes
// to be complete.
func firstLines(t *testing.T, c *client, drv string) []string {
	t.Helper()
	names, err := c.StorePaths()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, name := range names {
		if _, rest, _ := strings.Cut(name, "-"); rest != drv && rest != drv+"-dev" {
			continue
		}
		if _, err := c.Exec(t.Context(), "nix-store", "--check-validity", "/nix/store/"+name); err != nil {
			continue // it began to arrive, no more
		}
		text, err := os.ReadFile(filepath.Join(c.Store(), "store", name))
		if err != nil {
			t.Fatal(err)
		}
		line, _, _ := strings.Cut(string(text), "\n")
		lines = append(lines, line)
	}
	return lines
}
