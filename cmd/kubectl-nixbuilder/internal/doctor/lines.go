// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package doctor

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/internal/nix/machines"
	"nixbuilder.io/nix-builder-operator/internal/probe"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// Lines say which machines to probe from here, without a cluster, and how. What a flag
// says goes before what a line says.
type Lines struct {
	// URIs are store URIs or whole lines of a machines file; File is the path of one,
	// "-" for standard input.
	URIs []string
	File string
	// Identities are paths of private keys. Where neither they nor a line name one,
	// those count that ssh looks for in the home directory.
	Identities []string
	// HostKeys are public keys, or paths of files with one; KnownHosts paths of
	// OpenSSH's known_hosts files, those of user and machine where there are none.
	HostKeys   []string
	KnownHosts []string
	// FirstUse accepts any host key of a machine for which none is known.
	FirstUse bool
	// RemoteProgram is the path of nix-daemon on the machines.
	RemoteProgram string
	// ProxyJump is "[user@]host[:port]" of an SSH server through which the machines are
	// reached. Its host key has to be in a known_hosts file; the keys to log in with are
	// those of the machine.
	ProxyJump string
	// Canary also builds something tiny for each system.
	Canary bool
	// StepTimeout bounds each step.
	StepTimeout time.Duration
	// Home is the user's directory.
	Home string
	// Stdin is read for the file "-".
	Stdin io.Reader
}

// Given tells whether there is any machine.
func (l *Lines) Given() bool { return len(l.URIs) > 0 || l.File != "" }

const (
	// maxFile bounds what is read of any file.
	maxFile = 1 << 20
	// minFreeBytes and maxClockSkew are the thresholds that a NixBuilder has unless
	// it says otherwise.
	minFreeBytes = 1 << 30
	maxClockSkew = 5 * time.Minute
)

// spot is a machine to probe, or why that cannot be.
type spot struct {
	name    string
	problem string
	target  probe.Target
}

// UsageError is about the command line, or a file that it names.
type UsageError struct{ err error }

// Error says what to change.
func (e *UsageError) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *UsageError) Unwrap() error { return e.err }

// named reads the machines of --uri. Unlike those of a file, which may well be for others,
// each has to be one that can be checked.
func (l *Lines) named() ([]machines.Machine, error) {
	var list []machines.Machine
	for _, text := range l.URIs {
		more, err := machines.Parse("--uri", []byte(text), machines.ParseOptions{})
		if err != nil {
			return nil, err
		}
		if len(more) == 0 {
			return nil, fmt.Errorf("--uri %q names no machine; write a store URI such as ssh-ng://nix@mac-1.example.com, or a line of a machines file", text)
		}
		for _, machine := range more {
			if !machine.URI.SSH() {
				return nil, fmt.Errorf("--uri %q: only ssh-ng:// and ssh:// machines can be checked", machine.URI.String())
			}
		}
		list = append(list, more...)
	}
	return list, nil
}

// check finds mistakes in flags that are about all machines, before any is connected to.
func (l *Lines) check() error {
	for _, file := range l.Identities {
		if _, err := readCredential(file); err != nil {
			return fmt.Errorf("--identity: %w", err)
		}
	}
	for _, given := range l.HostKeys {
		if _, err := publicKey(given); err != nil {
			return err
		}
	}
	if l.ProxyJump == "" {
		return nil
	}
	_, err := l.jumpURI()
	return err
}

// jumpURI takes --proxy-jump apart.
func (l *Lines) jumpURI() (machines.StoreURI, error) {
	uri, err := machines.ParseStoreURI("ssh-ng://" + l.ProxyJump)
	switch {
	case err != nil:
		return uri, fmt.Errorf("--proxy-jump: %w", err)
	case strings.ContainsAny(l.ProxyJump, " \t,/?"):
		return uri, fmt.Errorf("--proxy-jump %q is not [user@]host[:port]", l.ProxyJump)
	}
	return uri, nil
}

// spots reads all lines. The error is a [UsageError].
func (l *Lines) spots() ([]spot, error) {
	spots, err := l.read()
	if err != nil {
		return nil, &UsageError{err}
	}
	return spots, nil
}

func (l *Lines) read() ([]spot, error) {
	if err := l.check(); err != nil {
		return nil, err
	}
	list, err := l.named()
	if err != nil {
		return nil, err
	}
	if l.File != "" {
		text, err := l.readLines()
		if err != nil {
			return nil, fmt.Errorf("read the machines file: %w", err)
		}
		more, err := machines.Parse(l.File, text, machines.ParseOptions{Include: readFile})
		if err != nil {
			return nil, err
		}
		list = append(list, more...)
	}
	if len(list) == 0 {
		return nil, errors.New("no machine is named: the machines file has comments and empty lines only")
	}
	known, err := l.known()
	if err != nil {
		return nil, err
	}
	var spots []spot
	for _, machine := range list {
		spots = append(spots, l.spot(machine, known))
	}
	return spots, nil
}

func (l *Lines) readLines() ([]byte, error) {
	if l.File == "-" {
		return readAll(l.Stdin)
	}
	return readFile(l.File)
}

// spot makes a target of a line.
func (l *Lines) spot(machine machines.Machine, known []byte) spot {
	s := spot{name: machine.URI.String()}
	document, unusable := inventory.FromMachines([]machines.Machine{machine}, inventory.FileOptions{})
	if len(unusable) > 0 {
		s.problem = unusable[0].Reason
		return s
	}
	e := document.Builders[0]
	s.target = probe.Target{
		Host: e.Host, Port: e.Port, User: e.User, RemoteProgram: e.RemoteProgram,
		HostKeys: e.HostKeys, Systems: machine.Systems, Features: slices.Concat(e.SupportedFeatures, e.MandatoryFeatures),
		Discovery: true, Canary: l.Canary, Timeout: l.StepTimeout, TrustOnFirstUse: l.FirstUse,
		Thresholds: probe.Thresholds{MinFreeBytes: minFreeBytes, MaxClockSkew: maxClockSkew},
	}
	if l.RemoteProgram != "" {
		s.target.RemoteProgram = l.RemoteProgram
	}
	if err := l.hostKeys(&s.target, known); err != nil {
		s.problem = err.Error()
		return s
	}
	if err := l.credentials(&s.target, e.IdentityFile); err != nil {
		s.problem = err.Error()
		return s
	}
	if err := l.jump(&s.target, known); err != nil {
		s.problem = err.Error()
	}
	return s
}

// jump fills in the jump host, if there is one.
func (l *Lines) jump(t *probe.Target, known []byte) error {
	if l.ProxyJump == "" {
		return nil
	}
	uri, err := l.jumpURI()
	if err != nil {
		return err
	}
	t.Jump = &probe.Jump{Host: uri.Host, Port: uri.SSHPort(), User: cmp.Or(uri.User, t.User), Credentials: t.Credentials}
	t.Jump.HostKeys, t.Jump.CertificateAuthorities = knownKeys(known, t.Jump.Host, t.Jump.Port)
	if len(t.Jump.HostKeys)+len(t.Jump.CertificateAuthorities) == 0 {
		return fmt.Errorf("no known_hosts file has the host key of the jump host %s; add it, or name a file with --known-hosts", sshconn.KnownHostName(uri.Host, uri.SSHPort()))
	}
	return nil
}

// hostKeys finds what the machine may present: the keys of the command line, else
// that of its line, else those of known_hosts.
func (l *Lines) hostKeys(t *probe.Target, known []byte) error {
	if len(l.HostKeys) > 0 {
		t.HostKeys = nil
	}
	for _, given := range l.HostKeys {
		key, err := publicKey(given)
		if err != nil {
			return err
		}
		t.HostKeys = append(t.HostKeys, key)
	}
	if len(t.HostKeys) > 0 {
		return nil
	}
	t.HostKeys, t.CertificateAuthorities = knownKeys(known, t.Host, t.Port)
	return nil
}

// knownKeys are the keys and authorities that known_hosts has for a host.
func knownKeys(known []byte, host string, port int) (keys, authorities []string) {
	policy := sshconn.KnownHosts(known, host, port)
	for _, key := range policy.Pinned {
		keys = append(keys, sshconn.AuthorizedKey(key))
	}
	for _, key := range policy.Authorities {
		authorities = append(authorities, sshconn.AuthorizedKey(key))
	}
	return keys, authorities
}

// publicKey takes a public key line, or the path of a file with one.
func publicKey(given string) (string, error) {
	if !strings.Contains(given, " ") {
		text, err := readFile(given)
		if err != nil {
			return "", fmt.Errorf("--host-key is neither a public key line nor a file that can be read: %w", err)
		}
		given = string(text)
	}
	key, _, err := probe.CheckHostKey(strings.TrimSpace(given))
	if err != nil {
		return "", fmt.Errorf("--host-key: %w", err)
	}
	return key, nil
}

// known reads the known_hosts files, all into one. Only those of the command line
// have to be there.
func (l *Lines) known() ([]byte, error) {
	var all []byte
	files := l.KnownHosts
	if len(files) == 0 {
		files = []string{filepath.Join(l.Home, ".ssh/known_hosts"), "/etc/ssh/ssh_known_hosts"}
	}
	for _, file := range files {
		text, err := readFile(file)
		if err != nil && len(l.KnownHosts) > 0 {
			return nil, fmt.Errorf("--known-hosts: %w", err)
		}
		all = append(append(all, text...), '\n')
	}
	return all, nil
}

// credentials reads the private keys to log in with: those of the command line, else
// the one of the line, else those that ssh would look for.
func (l *Lines) credentials(t *probe.Target, fromLine string) error {
	files := l.Identities
	if len(files) == 0 && fromLine != "" {
		files = []string{fromLine}
	}
	if len(files) > 0 {
		for _, file := range files {
			credential, err := readCredential(file)
			if err != nil {
				return fmt.Errorf("the private key cannot be read (--identity names another): %w", err)
			}
			t.Credentials = append(t.Credentials, credential)
		}
		return nil
	}
	for _, name := range []string{"id_ed25519", "id_ecdsa", "id_rsa"} {
		if credential, err := readCredential(filepath.Join(l.Home, ".ssh", name)); err == nil {
			t.Credentials = append(t.Credentials, credential)
		}
	}
	if len(t.Credentials) == 0 {
		return fmt.Errorf("no private key is named, and there is none in %s; name one with --identity", filepath.Join(l.Home, ".ssh"))
	}
	return nil
}

// readCredential reads a private key and the certificate beside it, if there is one.
func readCredential(file string) (probe.Credential, error) {
	key, err := readFile(file)
	if err != nil {
		return probe.Credential{}, err
	}
	certificate, err := readFile(file + "-cert.pub")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return probe.Credential{}, err
	}
	return probe.Credential{Name: file, PrivateKey: key, Certificate: certificate}, nil
}

func readFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	return readAll(file)
}

func readAll(src io.Reader) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(src, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("it has more than %d bytes", maxFile)
	}
	return text, err
}
