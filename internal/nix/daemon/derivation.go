// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import "nixbuilder.io/nix-builder-operator/internal/nix/wire"

// BasicDerivation is a derivation without its input derivations: what a builder
// needs to run it once all its inputs are there. Order is kept everywhere, so
// that it encodes to the bytes it was decoded from.
type BasicDerivation struct {
	Outputs []DerivationOutput
	// InputSources are full store paths of all inputs.
	InputSources []string
	// Platform is the system, for instance "x86_64-linux".
	Platform string
	Builder  string
	Args     []string
	Env      []EnvVar
}

// EnvVar is a variable of a derivation's environment. Values may hold any bytes.
type EnvVar struct{ Name, Value string }

// DerivationOutput is an output of a derivation.
type DerivationOutput struct {
	Name string
	// Path is the full store path, "" where it is known only after the build.
	Path string
	// HashAlgo and Hash are set for content-addressed outputs: "r:sha256" and the
	// expected hash in base 16, "" where the content is not fixed.
	HashAlgo, Hash string
}

// OutputKind says how the path of an output is determined.
type OutputKind uint8

// Output kinds.
const (
	// OutputInputAddressed has a path that the derivation determines.
	OutputInputAddressed OutputKind = iota
	// OutputFixed has a hash that its content must have.
	OutputFixed
	// OutputFloating gets a path from whatever content it has.
	OutputFloating
	// OutputDeferred is input-addressed with inputs that are not yet known.
	OutputDeferred
	// OutputImpure is floating and built anew each time.
	OutputImpure
)

// impureHash stands where the hash of an impure output would.
const impureHash = "impure"

// Kind tells how the output's path is determined.
func (o DerivationOutput) Kind() OutputKind {
	switch {
	case o.HashAlgo == "" && o.Path == "":
		return OutputDeferred
	case o.HashAlgo == "":
		return OutputInputAddressed
	case o.Hash == impureHash:
		return OutputImpure
	case o.Hash == "":
		return OutputFloating
	}
	return OutputFixed
}

// FixedOutput tells whether the content of all outputs is fixed by hashes, as in
// derivations that fetch something.
func (d *BasicDerivation) FixedOutput() bool {
	for _, o := range d.Outputs {
		if o.Kind() != OutputFixed {
			return false
		}
	}
	return len(d.Outputs) > 0
}

// lookup returns the value of a variable of the environment.
func (d *BasicDerivation) lookup(name string) (string, bool) {
	for _, v := range d.Env {
		if v.Name == name {
			return v.Value, true
		}
	}
	return "", false
}

func (d *BasicDerivation) encode(w *wire.Writer) {
	w.Uint64(uint64(len(d.Outputs)))
	for _, o := range d.Outputs {
		w.String(o.Name)
		w.String(o.Path)
		w.String(o.HashAlgo)
		w.String(o.Hash)
	}
	w.Strings(d.InputSources)
	w.String(d.Platform)
	w.String(d.Builder)
	w.Strings(d.Args)
	w.Uint64(uint64(len(d.Env)))
	for _, v := range d.Env {
		w.String(v.Name)
		w.String(v.Value)
	}
}

func (d *decoder) derivation() *BasicDerivation {
	drv := &BasicDerivation{
		Outputs:      d.derivationOutputs(),
		InputSources: d.paths("input sources"),
		Platform:     d.String("platform", limitName),
		Builder:      d.String("builder", limitText),
		Args:         d.Strings("arguments", limitArgs, limitText),
		Env:          d.environment(),
	}
	if d.Err() != nil {
		return nil
	}
	return drv
}

func (d *decoder) derivationOutputs() []DerivationOutput {
	n := d.Count("output count", limitOutputs)
	var outputs []DerivationOutput
	for range n {
		outputs = append(outputs, DerivationOutput{
			Name:     d.String("output name", limitName),
			Path:     d.optionalPath("output path"),
			HashAlgo: d.String("output hash algorithm", limitHash),
			Hash:     d.String("output hash", limitHash),
		})
		if d.Err() != nil {
			return nil
		}
	}
	return outputs
}

func (d *decoder) environment() []EnvVar {
	n := d.Count("environment count", limitEnv)
	var env []EnvVar
	for range n {
		env = append(env, EnvVar{
			Name:  d.String("environment name", limitText),
			Value: d.String("environment value", limitText),
		})
		if d.Err() != nil {
			return nil
		}
	}
	return env
}
