// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package inventory

import (
	"errors"
	"fmt"
	"math"
	"path"
	"runtime"
	"strings"

	"nixbuilder.io/nix-builder-operator/internal/nix/machines"
)

// FileBuilder is the name of the builder that has all endpoints of a machines
// file.
const FileBuilder = "machines"

// FileOptions are what a machines file leaves to its reader.
type FileOptions struct {
	// System is that of lines which name none; the one that this program runs
	// on if empty, as in Nix.
	System string
	// User is the account for lines which name none; root if empty, the user
	// as whom the client's ssh runs in most installations.
	User string
}

// Unusable is a line of a machines file that cannot become an endpoint.
type Unusable struct {
	// Origin is where the line is.
	Origin machines.Position
	// URI is its store.
	URI string
	// Reason says why, and what to change.
	Reason string
}

// String is for log lines and pages.
func (u Unusable) String() string { return fmt.Sprintf("%s: %s: %s", u.Origin, u.URI, u.Reason) }

// FromMachines makes a document of a machines file, in state Unknown, since
// nobody probes these machines. Lines that cannot be used are left out and
// returned with the reason.
//
// A line is an endpoint of its own even where others name the same host, as
// for Nix. Lines with ssh:// are spoken to as if it were ssh-ng://: both
// reach the same Nix by the same login, and only the latter can tell whether
// the user is trusted.
func FromMachines(list []machines.Machine, opts FileOptions) (Document, []Unusable) {
	if opts.System == "" {
		opts.System = localSystem()
	}
	if opts.User == "" {
		opts.User = "root"
	}
	document := Document{SchemaVersion: SchemaVersion}
	var unusable []Unusable
	scale := speedScale(list)
	names := names{}
	for _, machine := range list {
		endpoint, err := fromMachine(machine, opts)
		if err == nil {
			endpoint.SpeedFactor = int(min(math.Ceil(machine.SpeedFactor*scale), MaxSpeedFactor))
			endpoint.Name = names.unique(endpoint.Name)
			err = endpoint.validate()
		}
		if err != nil {
			unusable = append(unusable, Unusable{machine.Origin, machine.URI.String(), err.Error()})
			continue
		}
		document.Builders = append(document.Builders, normalised(endpoint))
	}
	return document, unusable
}

func fromMachine(machine machines.Machine, opts FileOptions) (Endpoint, error) {
	uri := machine.URI
	switch {
	case !uri.SSH():
		return Endpoint{}, errors.New("only ssh-ng:// and ssh:// machines can be reached")
	case uri.Host == "localhost" && uri.User == "" && uri.Port == 0:
		return Endpoint{}, errors.New("localhost means a program in the client, not a machine; its address 127.0.0.1 would be one")
	case uri.Path != "":
		return Endpoint{}, fmt.Errorf("the path %s after the host has no meaning", uri.Path)
	case uri.RemoteStore() != "":
		return Endpoint{}, errors.New("the parameter remote-store is not supported: a builder builds in its own store")
	case machine.MaxJobs < 1:
		return Endpoint{}, errors.New("it takes 0 jobs")
	}
	program, err := daemonProgram(uri)
	if err != nil {
		return Endpoint{}, err
	}
	keys, err := hostKeys(machine)
	if err != nil {
		return Endpoint{}, err
	}
	endpoint := Endpoint{
		Builder:           FileBuilder,
		Name:              uri.Host,
		Host:              uri.Host,
		Port:              uri.SSHPort(),
		User:              uri.User,
		HostKeys:          keys,
		IdentityFile:      machine.Identity,
		RemoteProgram:     program,
		Systems:           machine.Systems,
		SupportedFeatures: machine.SupportedFeatures,
		MandatoryFeatures: machine.MandatoryFeatures,
		Slots:             min(machine.MaxJobs, MaxSlots),
		State:             StateUnknown,
	}
	if endpoint.Port != 22 {
		endpoint.Name = fmt.Sprintf("%s:%d", endpoint.Host, endpoint.Port)
	}
	if endpoint.User == "" {
		endpoint.User = opts.User
	}
	if endpoint.IdentityFile == "" {
		endpoint.IdentityFile = uri.Params[machines.ParamIdentity]
	}
	if len(endpoint.Systems) == 0 {
		endpoint.Systems = []string{opts.System}
	}
	return endpoint, nil
}

// daemonProgram gives the path of nix-daemon. A line with ssh:// names
// nix-store instead, which is always installed in the same directory.
func daemonProgram(uri machines.StoreURI) (string, error) {
	program := uri.RemoteProgram()
	safe := func(r rune) bool {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("._/+-", r)
	}
	switch {
	case strings.ContainsFunc(program, func(r rune) bool { return !safe(r) }):
		return "", fmt.Errorf("remote-program %q has to be one path of letters, digits and . _ / + -", program)
	case program == "" || uri.Scheme != "ssh":
		return program, nil
	case path.Base(program) != "nix-store":
		return "", fmt.Errorf("remote-program %q of an ssh:// line is not nix-store: write ssh-ng:// and the path of nix-daemon", program)
	}
	return path.Join(path.Dir(program), "nix-daemon"), nil
}

// hostKeys gives the keys that the line names in its column or, where that is
// empty, in the URI.
func hostKeys(machine machines.Machine) ([]string, error) {
	text := machine.HostKey
	if encoded := machine.URI.Params[machines.ParamHostKey]; text == "" && encoded != "" {
		var err error
		if text, err = machines.DecodeHostKey(encoded); err != nil {
			return nil, fmt.Errorf("%s is not valid base64: %w", machines.ParamHostKey, err)
		}
	}
	var keys []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if err := machines.CheckHostKey(line); err != nil {
			return nil, fmt.Errorf(`%w: encode the whole file with "base64 -w0"`, err)
		}
		keys = append(keys, line)
	}
	return keys, nil
}

// speedScale is what makes all speed factors of a list whole enough to be
// told apart: only their ratios have a meaning.
func speedScale(list []machines.Machine) float64 {
	for _, machine := range list {
		if machine.SpeedFactor != math.Trunc(machine.SpeedFactor) {
			return 100
		}
	}
	return 1
}

// names are those given away, each with the number to try next behind it.
type names map[string]int

// unique gives the name, with a number behind it where it is taken.
func (n names) unique(name string) string {
	candidate := name
	for n[candidate] > 0 {
		n[name]++
		candidate = fmt.Sprintf("%s-%d", name, n[name])
	}
	n[candidate] = 1
	return candidate
}

// localSystem is Nix's name of the platform that this program runs on.
func localSystem() string {
	cpu := map[string]string{
		"amd64": "x86_64", "arm64": "aarch64", "386": "i686", "arm": "armv7l", "ppc64le": "powerpc64le",
	}[runtime.GOARCH]
	if cpu == "" {
		cpu = runtime.GOARCH
	}
	return cpu + "-" + runtime.GOOS
}
