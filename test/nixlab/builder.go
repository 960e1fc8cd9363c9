// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixlab

import (
	"cmp"
	"context"
	_ "embed"
	"encoding/base64"
	"fmt"
	"net"
	"strings"
)

//go:embed scripts/builder-init.sh
var builderInit string

//go:embed scripts/lab-daemon.sh
var labDaemon string

// BuilderOptions for [Lab.StartBuilder]. Only Name is required.
type BuilderOptions struct {
	// Name is unique within the lab; a DNS label.
	Name string
	// Version of Nix; [Newest] by default.
	Version Version
	// Address is a loopback address; one of the lab's own by default.
	Address string
	// Port of sshd; by default 22, or 2222 where this machine's own SSH
	// server keeps port 22 of every address for itself.
	Port int
	// Features are the builder's system-features; none by default, so that
	// what a builder can do does not hang on the machine below the lab.
	Features []string
	// NixConf is appended to the builder's nix.conf.
	NixConf string
	// SSHDConfig is appended to the configuration of sshd.
	SSHDConfig string
	// OwnNetwork gives the builder a network of its own with nothing but
	// loopback; sshd listens on port 22 of every address. Whoever asks for it
	// moves an interface there, by [Host.PID], after every boot.
	OwnNetwork bool
	// Namespace is the path of an existing network namespace that the builder
	// joins at every boot, instead of one of its own. Address and Port are those
	// in it; sshd listens as with OwnNetwork by default.
	Namespace string
	// Store is a directory of this machine that is the builder's /nix, such as
	// one of limited size; one of the lab's own by default.
	Store string
}

// Builder is a machine with nix-daemon and sshd.
type Builder struct {
	*Host
	address string
	port    int
	hostKey string
	// features are its system-features.
	features []string
}

// StartBuilder boots a builder and returns once it takes connections, usually
// within half a second. Its users are [TrustedUser] and [UntrustedUser]; both
// accept the key of [Lab.ClientKeyFile].
func (l *Lab) StartBuilder(ctx context.Context, opts BuilderOptions) (*Builder, error) {
	if opts.Version == "" {
		opts.Version = Newest
	}
	root, err := l.rootFS(ctx, opts.Version)
	if err != nil {
		return nil, err
	}
	switch {
	case opts.OwnNetwork, opts.Namespace != "":
		opts.Address, opts.Port = cmp.Or(opts.Address, "0.0.0.0"), cmp.Or(opts.Port, 22)
	case opts.Address == "":
		opts.Address = l.nextAddress()
	}
	if opts.Port == 0 {
		opts.Port = sshPort(opts.Address)
	}
	private, public, err := newKeyPair(opts.Name)
	if err != nil {
		return nil, fmt.Errorf("builder %s: %w", opts.Name, err)
	}
	host, err := l.startHost(ctx, hostSpec{
		name:       opts.Name,
		root:       root,
		ownNetwork: opts.OwnNetwork,
		network:    opts.Namespace,
		store:      opts.Store,
		files:      map[string]string{"etc/ssh/lab_hostkey": private},
		public: map[string]string{
			"lab-init":                    builderInit,
			"lab-daemon":                  labDaemon,
			"etc/nix/nix.conf":            builderNixConf(opts),
			"etc/ssh/lab_sshd_config":     sshdConfig(opts),
			"etc/ssh/lab_authorized_keys": l.clientKey + "\n",
		},
	})
	if err != nil {
		return nil, err
	}
	return &Builder{Host: host, address: opts.Address, port: opts.Port, hostKey: public, features: opts.Features}, nil
}

// Address is where sshd listens, as "host:port".
func (b *Builder) Address() string { return net.JoinHostPort(b.address, fmt.Sprint(b.port)) }

// IP is the address without the port.
func (b *Builder) IP() string { return b.address }

// Port is sshd's port.
func (b *Builder) Port() int { return b.port }

// HostKey is the public host key, type and base64, as in known_hosts.
func (b *Builder) HostKey() string { return b.hostKey }

// KnownHostsLine is the builder's line for an OpenSSH known_hosts file.
func (b *Builder) KnownHostsLine() string {
	if b.port == 22 {
		return b.address + " " + b.hostKey
	}
	return fmt.Sprintf("[%s]:%d %s", b.address, b.port, b.hostKey)
}

// MachinesLine is the builder's line for a machines file: the trusted user,
// the lab's key, so many jobs, the builder's features and its host key. Nix
// before 2.31 can use it on port 22 only.
func (b *Builder) MachinesLine(jobs int) string { return b.MachinesLineAt(b.Address(), jobs) }

// MachinesLineAt is [Builder.MachinesLine] with another address ("host:port"),
// such as that of a [Link].
func (b *Builder) MachinesLineAt(address string, jobs int) string {
	host := strings.TrimSuffix(address, ":22")
	features := "-"
	if len(b.features) > 0 {
		features = strings.Join(b.features, ",")
	}
	return fmt.Sprintf("ssh-ng://%s@%s %s %s %d 1 %s - %s", TrustedUser, host, System(), b.lab.ClientKeyFile(), jobs,
		features, base64.StdEncoding.EncodeToString([]byte(b.hostKey)))
}

func builderNixConf(opts BuilderOptions) string {
	return joinLines(
		"sandbox = false",
		"substituters =",
		"trusted-users = root "+TrustedUser,
		"allowed-users = *",
		"max-jobs = 4",
		"system-features = "+strings.Join(opts.Features, " "),
		"experimental-features = nix-command",
		opts.NixConf,
	)
}

func sshdConfig(opts BuilderOptions) string {
	return joinLines(
		"ListenAddress "+opts.Address,
		fmt.Sprintf("Port %d", opts.Port),
		"HostKey /etc/ssh/lab_hostkey",
		"PidFile none",
		"UsePAM no",
		"PasswordAuthentication no",
		"KbdInteractiveAuthentication no",
		"AuthorizedKeysFile /etc/ssh/lab_authorized_keys",
		"LogLevel VERBOSE",
		opts.SSHDConfig,
	)
}

// joinLines makes the text of a configuration file.
func joinLines(lines ...string) string {
	return strings.TrimSpace(strings.Join(lines, "\n")) + "\n"
}

// sshPort is 22 if that can be had on the address.
func sshPort(address string) int {
	listener, err := net.Listen("tcp", net.JoinHostPort(address, "22"))
	if err != nil {
		return 2222
	}
	listener.Close()
	return 22
}
