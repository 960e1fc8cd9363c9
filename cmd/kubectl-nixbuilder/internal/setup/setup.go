// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package setup writes what turns a machine with Nix into a builder: a script or module
// for the machine, and the commands for the cluster.
package setup

import (
	"cmp"
	"embed"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"text/template"

	"nixbuilder.io/nix-builder-operator/internal/probe"
)

//go:embed text
var texts embed.FS

// Options say what to write. Only For is required.
type Options struct {
	// For is the machine's kind: linux, nixos or macos.
	For string
	// User is the account that is logged in to.
	User string
	// PublicKey is the line of the key that may log in; a placeholder where it is
	// empty. PrivateKey is the path of the other half.
	PublicKey, PrivateKey string
	// From are the only addresses from which the key may be used: those that
	// authorized_keys takes.
	From []string
	// DaemonOnly allows the key nothing but to run nix-daemon. The machine cannot be
	// asked for its systems then: Systems have to be given.
	DaemonOnly bool
	// RemoteProgram is the path of nix-daemon; where it is empty that of For.
	RemoteProgram string
	// Name is that of the NixBuilder, Secret that of the key, Namespace where both
	// go; the one of the kubeconfig where it is empty.
	Name, Secret, Namespace string
	// Host, Port and HostKey are the machine's; placeholders, or 22, where they are
	// empty.
	Host, HostKey string
	Port          int
	Systems       []string
}

// Text is what there is to do. Its JSON is documented in docs/kubectl.md.
type Text struct {
	// Machine is a script to run as root, for NixOS a module.
	Machine string `json:"machine"`
	// Cluster is a script for whoever may make Secrets and NixBuilders.
	Cluster string `json:"cluster"`
	// AuthorizedKey, NixConf and SSHDConfig are the lines that the machine's part
	// brings about.
	AuthorizedKey string `json:"authorizedKey"`
	NixConf       string `json:"nixConf"`
	SSHDConfig    string `json:"sshdConfig"`
}

// Kinds of machines.
const (
	Linux = "linux"
	NixOS = "nixos"
	MacOS = "macos"
)

// Kinds lists them.
func Kinds() []string { return []string{Linux, NixOS, MacOS} }

// Placeholders for what is not given.
const (
	noKey     = "ssh-ed25519 AAAA…the-content-of-nix-builder.pub"
	noHostKey = "ssh-ed25519 AAAA…what-the-machine-says"
	noHost    = "builder-1.example.com"
	keyFile   = "./nix-builder"
	macDaemon = "/nix/var/nix/profiles/default/bin/nix-daemon"
)

// setting is one of sshd.
type setting struct{ Name, Value, NixValue string }

// settings of sshd for builders.
func settings() []setting {
	return []setting{
		{"ClientAliveInterval", "15", "15"},
		{"ClientAliveCountMax", "3", "3"},
		{"MaxStartups", "100:30:200", `"100:30:200"`},
	}
}

// data is what the texts are made with.
type data struct {
	Options
	AuthorizedKey, NixConf, SSHDConfig, NixUser, Endpoint, N string
	SSHD                                                     []setting
	MakeKey                                                  bool
}

// New writes the texts. The error is about an option that cannot be what it is.
func New(o Options) (*Text, error) {
	d := data{Options: o, SSHD: settings(), MakeKey: o.PublicKey == ""}
	d.User = cmp.Or(o.User, "nix-ssh")
	d.Secret = cmp.Or(o.Secret, "builder-key")
	d.Name = cmp.Or(o.Name, map[string]string{MacOS: "mac"}[o.For], Linux)
	d.PrivateKey = cmp.Or(o.PrivateKey, keyFile)
	d.Host = cmp.Or(o.Host, noHost)
	if o.For == MacOS {
		d.RemoteProgram = cmp.Or(o.RemoteProgram, macDaemon)
	}
	if err := d.check(); err != nil {
		return nil, err
	}
	if err := d.keys(); err != nil {
		return nil, err
	}
	d.Endpoint = strings.ReplaceAll(d.Name, ".", "-") + "-1" // no dots there
	d.NixUser = d.User
	if strings.ContainsAny(d.User, ".") || d.User[0] >= '0' && d.User[0] <= '9' {
		d.NixUser = `"` + d.User + `"`
	}
	d.NixConf = "extra-trusted-users = " + d.User
	for _, s := range d.SSHD {
		d.SSHDConfig += s.Name + " " + s.Value + "\n"
	}
	if d.Namespace != "" {
		d.N = " -n " + d.Namespace
	}
	text := &Text{AuthorizedKey: d.AuthorizedKey, NixConf: d.NixConf, SSHDConfig: d.SSHDConfig}
	name := map[string]string{Linux: "linux.sh", NixOS: "nixos.nix", MacOS: "macos.sh"}[o.For]
	var err error
	if text.Machine, err = d.render(name); err != nil {
		return nil, err
	}
	text.Cluster, err = d.render("cluster.sh")
	return text, err
}

func (d *data) render(name string) (string, error) {
	parsed, err := template.ParseFS(texts, "text/"+name)
	if err != nil {
		return "", err
	}
	var text strings.Builder
	err = parsed.Execute(&text, d)
	return text.String(), err
}

// check refuses what could mean something else in a script, a module or YAML than it
// says.
func (d *data) check() error {
	const (
		account = `^[A-Za-z0-9_][A-Za-z0-9_.-]*$`
		name    = `^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`
		named   = "a name of Kubernetes: small letters, digits, - and ., with a letter or digit at both ends"
	)
	for _, field := range []struct{ flag, value, pattern, takes string }{
		{"--for", d.For, `^(linux|nixos|macos)$`, "linux, nixos or macos"},
		{"--user", d.User, account, "the name of an account: letters, digits, ., - and _"},
		{"--name", d.Name, name, named},
		{"--secret", d.Secret, name, named},
		{"--namespace", cmp.Or(d.Namespace, "x"), name, named},
		{"--host", d.Host, `^[a-z0-9.:-]+$`, "a DNS name in small letters, or an address"},
		{"--remote-program", cmp.Or(d.RemoteProgram, "/x"), `^/[A-Za-z0-9._/+-]+$`, "a path that begins with /, without blanks or other special characters"},
		{"the path of the private key", d.PrivateKey, `^[A-Za-z0-9._/+@-]+$`, "one without blanks or other special characters"},
		{"--from", cmp.Or(strings.Join(d.From, ","), "x"), `^[A-Za-z0-9.,:/*?!-]+$`, "an address, a range such as 10.0.0.0/8, or a pattern of host names"},
		{"--system", cmp.Or(strings.Join(d.Systems, ","), "x"), `^[A-Za-z0-9_,-]+$`, "a system such as x86_64-linux"},
	} {
		if !regexp.MustCompile(field.pattern).MatchString(field.value) {
			return fmt.Errorf("%s %q cannot be used here: it has to be %s", field.flag, field.value, field.takes)
		}
	}
	if d.DaemonOnly && len(d.Systems) == 0 {
		return errors.New("with --daemon-only the machine cannot be asked what it builds for: say it with --system")
	}
	return nil
}

// keys fills in the lines that are made of keys.
func (d *data) keys() error {
	key := noKey
	if d.PublicKey != "" {
		plain, err := publicKey(d.PublicKey)
		if err != nil {
			return fmt.Errorf("--public-key: %w", err)
		}
		key = plain
	}
	if d.HostKey == "" {
		d.HostKey = noHostKey
	} else if plain, _, err := probe.CheckHostKey(d.HostKey); err != nil {
		return fmt.Errorf("--host-key: %w", err)
	} else {
		d.HostKey = plain
	}
	// "restrict" turns off everything that is not asked for, also what future versions
	// of sshd come with.
	options := []string{"restrict"}
	if len(d.From) > 0 {
		options = append(options, `from="`+strings.Join(d.From, ",")+`"`)
	}
	if d.DaemonOnly {
		options = append(options, `command="`+cmp.Or(d.RemoteProgram, "nix-daemon")+` --stdio"`)
	}
	d.AuthorizedKey = strings.Join(options, ",") + " " + key
	return nil
}

// publicKey gives type, key and comment, the latter as far as it is harmless.
func publicKey(line string) (string, error) {
	line = strings.TrimSpace(line)
	if strings.Contains(line, "PRIVATE KEY") {
		return "", errors.New("that is the private key: it stays where it is; name the file that ends in .pub")
	}
	plain, _, err := probe.CheckHostKey(line)
	if err != nil {
		return "", err
	}
	fields := strings.Fields(line)
	if len(fields) == 3 && regexp.MustCompile(`^[A-Za-z0-9@._-]+$`).MatchString(fields[2]) {
		plain += " " + fields[2]
	}
	return plain, nil
}
