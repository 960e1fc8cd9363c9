// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"nixbuilder.io/nix-builder-operator/test/bench/figures"
	"nixbuilder.io/nix-builder-operator/test/bench/netline"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// lineKind is a quality of lines; every builder has one line of each kind.
type lineKind struct {
	name    string
	quality netline.Quality
}

// The names are parts of those of scenarios.
var (
	loopback = lineKind{name: "loopback"}
	rtt20    = lineKind{name: "rtt20", quality: netline.Quality{RoundTrip: 20 * time.Millisecond}}
	rtt80    = lineKind{name: "rtt80", quality: netline.Quality{RoundTrip: 80 * time.Millisecond}}
	lossy    = lineKind{name: "lossy", quality: netline.Quality{RoundTrip: 80 * time.Millisecond, Loss: 0.001, Seed: 1}}
)

func lineKinds() []lineKind { return []lineKind{loopback, rtt20, rtt80, lossy} }

// site is one client and some builders with one version of Nix, each in a network
// of its own, and lines between them. Dispatchers run in the client's network.
type site struct {
	lab      *nixlab.Lab
	version  nixlab.Version
	programs string
	network  *netline.Namespace
	client   *nixlab.Client
	// shared is the directory that clients see at [nixlab.VolumePath].
	shared   string
	stations []*station
	closers  []func()
	names    int
}

// station is a builder with its lines.
type station struct {
	*nixlab.Builder
	network *netline.Namespace
	index   int
	// lines are by the name of their kind.
	lines map[string]*netline.Line
}

// newSite boots the hosts. Close ends all that has been started on it.
func newSite(ctx context.Context, lab *nixlab.Lab, programs string, version nixlab.Version, builders int) (s *site, err error) {
	s = &site{lab: lab, version: version, programs: programs}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.shared, err = os.MkdirTemp(lab.Dir(), "shared-"); err != nil {
		return nil, err
	}
	if err := os.Chmod(s.shared, 0o755); err != nil {
		return nil, err
	}
	if s.network, err = netline.NewNamespace(); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.network.Close)
	if s.client, err = s.startClient(ctx); err != nil {
		return nil, err
	}
	for i := range builders {
		if err := s.addStation(ctx, i); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Close stops everything on the site, the last started first.
func (s *site) Close() {
	slices.Reverse(s.closers)
	for _, closeOne := range s.closers {
		closeOne()
	}
	s.closers = nil
}

// startClient boots a client that has all that the direct way needs and, like
// every other of the site, its own store.
func (s *site) startClient(ctx context.Context) (*nixlab.Client, error) {
	client, err := s.lab.StartClient(ctx, nixlab.ClientOptions{
		Name:      s.name("client"),
		Version:   s.version,
		Volume:    s.shared,
		Network:   true,
		Namespace: s.network.Path(),
	})
	if err == nil {
		s.closers = append(s.closers, client.Kill)
	}
	return client, err
}

func (s *site) addStation(ctx context.Context, index int) error {
	network, err := netline.NewNamespace()
	if err != nil {
		return err
	}
	s.closers = append(s.closers, network.Close)
	b := &station{network: network, index: index, lines: map[string]*netline.Line{}}
	for k, kind := range lineKinds() {
		device := fmt.Sprintf("b%dk%d", index, k)
		line, err := netline.Connect(
			netline.End{Namespace: s.network, Device: device, Address: fmt.Sprintf("10.%d.%d.1", k, index)},
			netline.End{Namespace: network, Device: device, Address: b.ip(kind)},
			kind.quality)
		if err != nil {
			return err
		}
		s.closers = append(s.closers, line.Close)
		b.lines[kind.name] = line
	}
	b.Builder, err = s.lab.StartBuilder(ctx, nixlab.BuilderOptions{
		Name:      s.name("builder"),
		Version:   s.version,
		Namespace: network.Path(),
	})
	if err != nil {
		return err
	}
	s.closers = append(s.closers, b.Kill)
	s.stations = append(s.stations, b)
	return nil
}

// name makes a name that no other host or directory of the lab has.
func (s *site) name(what string) string {
	s.names++
	return fmt.Sprintf("%s-%s-%d", what, strings.ReplaceAll(string(s.version), ".", ""), s.names)
}

// ip is the builder's address on its line of the kind.
func (b *station) ip(kind lineKind) string {
	k := slices.IndexFunc(lineKinds(), func(other lineKind) bool { return other.name == kind.name })
	return fmt.Sprintf("10.%d.%d.2", k, b.index)
}

// daemonSocket is the builder's nix-daemon's, as a path of this machine.
func (b *station) daemonSocket() string {
	return filepath.Join(b.Store(), "var/nix/daemon-socket/socket")
}

// way is one of the ways from the client to the builders.
type way struct {
	name string
	// builders is the client's setting.
	builders string
}

// direct is how stock Nix does it: ssh-ng with OpenSSH.
func (s *site) direct(client *nixlab.Client, kind lineKind, slots ...int) (way, error) {
	file := "/etc/nix/machines." + kind.name
	var lines strings.Builder
	for i, b := range s.stations[:len(slots)] {
		line := b.MachinesLineAt(b.ip(kind)+":22", slots[i])
		// The key lies elsewhere on a client than on this machine.
		lines.WriteString(strings.Replace(line, s.lab.ClientKeyFile(), "/etc/nix/builder_key", 1) + "\n")
	}
	return way{name: figures.Direct, builders: "@" + file}, client.WriteFile(file, lines.String(), 0o644)
}

// errBuild is a build of the benchmark that failed.
var errBuild = errors.New("a build of the benchmark failed")

// build builds an expression on the client and returns how long that took, from
// the start of nix-build to its end.
func (s *site) build(ctx context.Context, client *nixlab.Client, w way, expression string, limit time.Duration) (time.Duration, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done after %v", limit))
	defer cancel()
	began := time.Now()
	result, err := client.NixBuildExpr(ctx, expression, "--builders", w.builders)
	took := time.Since(began)
	if err == nil && result.Status != 0 {
		err = fmt.Errorf("%w: status %d\n%s", errBuild, result.Status, result.Stderr)
	}
	if err != nil {
		return 0, fmt.Errorf("%s, Nix %s: %w", w.name, client.Nix(), err)
	}
	return took, nil
}
