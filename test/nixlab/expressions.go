// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixlab

import (
	_ "embed"
	"fmt"
	"strings"
)

// The functions in this file write Nix expressions whose builds need nothing
// but the /bin/sh of a host. They use no Nixpkgs. Equal arguments give equal
// derivations; a test that wants a build of its own picks a name of its own.

// derivation is the text of one call of Nix's primitive. Commands run in
// /bin/sh; further attributes are Nix text ("a = 1;").
//
// The shell outlives the last command. Else that would take the shell's place, and
// many programs close their output before they exit, upon which Nix kills them: a
// build then fails now and then by signal 9.
func derivation(name, commands, attributes string) string {
	return fmt.Sprintf(`derivation { name = %q; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" %s ]; PATH = "/usr/bin:/bin"; %s }`,
		name, indented(commands+"\nexit $?"), attributes)
}

// indented quotes shell text as a Nix string that leaves ${…} of Nix alone.
func indented(text string) string { return "''" + strings.ReplaceAll(text, "''", "'''") + "''" }

// Trivial builds a file without any input.
func Trivial(name string) string {
	return derivation(name, "echo hello > $out", "")
}

// WithInputs builds something that needs n paths, each of which the client's
// store gets without a build, so the client has to upload them.
func WithInputs(name string, n int) string {
	inputs := fmt.Sprintf(`builtins.genList (i: builtins.toFile "%s-input-${toString i}" "input ${toString i} of %s\n") %d`, name, name, n)
	return derivation(name, "cat $inputs /dev/null > $out", "inputs = "+inputs+";")
}

// WithLargeInput builds something whose only input the client has to upload,
// of about so many bytes that do not compress.
func WithLargeInput(name string, bytes int) string {
	// Hashes of hashes, 64 characters each, joined: quick to evaluate.
	input := fmt.Sprintf(`builtins.toFile "%s-input" (builtins.concatStringsSep "" (builtins.genList (i: builtins.hashString "sha256" "%s ${toString i}") %d))`, name, name, bytes/64)
	return derivation(name, "wc -c < $input > $out", "input = "+input+";")
}

// WithLog builds something that writes the lines to its log.
func WithLog(name string, lines ...string) string {
	var commands strings.Builder
	for _, line := range lines {
		fmt.Fprintf(&commands, "echo '%s'\n", line)
	}
	return derivation(name, commands.String()+"echo done > $out", "")
}

// WithOutputs builds one derivation with n outputs and refers to all of them,
// in a list.
func WithOutputs(name string, n int) string {
	names := []string{"out"}
	for i := 1; i < n; i++ {
		names = append(names, fmt.Sprintf("out%d", i))
	}
	outputs := `outputs = [ "` + strings.Join(names, `" "`) + `" ];`
	drv := derivation(name, `for o in $outputs; do echo "$o" > "$(eval echo \$$o)"; done`, outputs)
	return "let drv = " + drv + "; in map (o: drv.${o}) drv.outputs"
}

// Failing builds nothing: it writes the line to its log and ends with the
// status.
func Failing(name, line string, status int) string {
	return derivation(name, fmt.Sprintf("echo '%s'\nexit %d", line, status), "")
}

// FixedOutput builds a file whose contents are named beforehand by their hash.
func FixedOutput(name string) string {
	hash := fmt.Sprintf(`outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = builtins.hashString "sha256" "fixed %s\n";`, name)
	return derivation(name, fmt.Sprintf("echo 'fixed %s' > $out", name), hash)
}

// Commands builds what shell commands put into $out.
func Commands(name, commands string) string { return derivation(name, commands, "") }

// FixedCommands is [Commands] with a result that has to be one word, "expected".
func FixedCommands(name, commands string) string {
	return derivation(name, commands, `outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = builtins.hashString "sha256" "expected";`)
}

// Sleeping builds for so many seconds.
func Sleeping(name string, seconds float64) string {
	return derivation(name, fmt.Sprintf("echo started; sleep %g; echo slept > $out", seconds), "")
}

// NeedingFeature builds only where the feature is.
func NeedingFeature(name, feature string) string {
	return derivation(name, "echo "+feature+" > $out", fmt.Sprintf("requiredSystemFeatures = [ %q ];", feature))
}

// Parallel is n builds that do not depend on each other; make gets their
// names.
func Parallel(name string, n int, make func(name string) string) string {
	var list strings.Builder
	for i := range n {
		fmt.Fprintf(&list, " (%s)", make(fmt.Sprintf("%s-%d", name, i)))
	}
	return "[" + list.String() + " ]"
}

// GraphSize is how many derivations [Graph] makes.
const GraphSize = 13

//go:embed graph.nix
var graph string

// Graph is a build of [GraphSize] derivations in three levels, four of which
// have several outputs; see graph.nix. Each works for so many seconds.
func Graph(name string, seconds float64) string {
	return strings.NewReplacer("@name@", name, "@seconds@", fmt.Sprintf("%g", seconds)).Replace(graph)
}

// Gated builds, once it has said so in its log, only when the file is there on
// its builder. It needs the result of another build, of some megabytes, so that
// it is better built where that is.
func Gated(name, file string) string {
	needed := derivation(name+"-needed", "head -c 3000000 /dev/zero > $out", "")
	return derivation(name, fmt.Sprintf("wc -c < $needed; echo waiting at the gate; until [ -e %s ]; do sleep 0.1; done; wc -c < $needed > $out", file), "needed = "+needed+";")
}
