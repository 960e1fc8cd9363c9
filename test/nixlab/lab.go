// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixlab

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"nixbuilder.io/nix-builder-operator/test/keeper"
)

// Options for [New]. The zero value is useful.
type Options struct {
	// Dir is where the lab makes its own directory; the system's directory
	// for temporary files by default. It must be on a real file system (not
	// an overlay) and is where the stores of all hosts lie.
	Dir string
	// Progress is told, line by line, what takes its time.
	Progress func(string)
}

// Lab is a set of builders and clients on this machine. Its methods can be
// called from several goroutines.
type Lab struct {
	dir      string
	progress func(string)
	keeper   *keeper.Keeper
	starter  *keeper.Starter
	prefix   string       // of the addresses: "127.a.b."
	claim    net.Listener // keeps other labs from using the same prefix
	// clientKey is the public half of the key that builders accept.
	clientKey string

	mu     sync.Mutex
	roots  map[Version]RootFS
	hosts  []*Host
	links  []*Link
	last   int // last part of the newest address
	closed bool
}

// New makes an empty lab. Call [Lab.Close] when done; if the process dies
// before that, its hosts die too and its files are removed.
func New(opts Options) (*Lab, error) {
	if err := Prerequisites(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(opts.Dir, "nixlab-")
	if err != nil {
		return nil, fmt.Errorf("Nix lab: %w", err)
	}
	l := &Lab{dir: dir, progress: opts.Progress, roots: map[Version]RootFS{}}
	if l.progress == nil {
		l.progress = func(string) {}
	}
	if l.keeper, err = keeper.Start("nixlab-keeper", dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	l.starter = keeper.NewStarter()
	if l.prefix, l.claim, err = claimAddresses(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if err := l.writeClientKey(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Lab) writeClientKey() error {
	private, public, err := newKeyPair("nixlab client")
	if err != nil {
		return err
	}
	l.clientKey = public
	return os.WriteFile(l.ClientKeyFile(), []byte(private), 0o600)
}

// Dir is the lab's own directory, a good place for files that have to vanish
// with it.
func (l *Lab) Dir() string { return l.dir }

// ClientKeyFile is the private key that every builder of the lab accepts, for
// both of its users.
func (l *Lab) ClientKeyFile() string { return filepath.Join(l.dir, "client_key") }

// Prepare makes the root file systems of the versions in parallel. Starting a
// host does so as well, one by one.
func (l *Lab) Prepare(ctx context.Context, versions ...Version) ([]RootFS, error) {
	roots, err := PrepareRootFS(ctx, l.progress, versions...)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, root := range roots {
		l.roots[root.Version] = root
	}
	return roots, nil
}

func (l *Lab) rootFS(ctx context.Context, version Version) (RootFS, error) {
	l.mu.Lock()
	root, ok := l.roots[version]
	l.mu.Unlock()
	if ok {
		return root, nil
	}
	roots, err := l.Prepare(ctx, version)
	if err != nil {
		return RootFS{}, err
	}
	return roots[0], nil
}

// Close stops every host and link and removes all files. It can be called
// more than once.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	hosts, links := slices.Clone(l.hosts), slices.Clone(l.links)
	l.mu.Unlock()

	for _, link := range links {
		link.Close()
	}
	for _, h := range hosts {
		h.Kill()
	}
	if l.starter != nil {
		l.starter.Stop()
	}
	if l.claim != nil {
		l.claim.Close()
	}
	return l.keeper.Release()
}

// nextAddress returns a loopback address that nothing else in the lab has.
func (l *Lab) nextAddress() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	return fmt.Sprint(l.prefix, l.last)
}

// claimAddresses picks a /24 of the loopback network that no other lab of this
// machine uses. The claim ends with the listener, at the latest with the
// process.
func claimAddresses() (prefix string, claim net.Listener, err error) {
	for range 100 {
		var b [2]byte
		if _, err := rand.Read(b[:]); err != nil {
			return "", nil, err
		}
		prefix = fmt.Sprintf("127.%d.%d.", 64+b[0]%64, b[1])
		claim, err = net.Listen("unix", "@nixlab-"+prefix)
		if err == nil {
			return prefix, claim, nil
		}
	}
	return "", nil, fmt.Errorf("Nix lab: no free loopback addresses: %w", err)
}

// newKeyPair makes an ed25519 key: the private half as ssh-keygen writes it,
// the public half as a line for authorized_keys.
func newKeyPair(comment string) (private, public string, err error) {
	key, secret, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", "", fmt.Errorf("generate a key: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(secret, comment)
	if err != nil {
		return "", "", fmt.Errorf("encode a private key: %w", err)
	}
	sshKey, err := ssh.NewPublicKey(key)
	if err != nil {
		return "", "", fmt.Errorf("encode a public key: %w", err)
	}
	return string(pem.EncodeToMemory(block)), strings.TrimSpace(string(ssh.MarshalAuthorizedKey(sshKey))), nil
}
