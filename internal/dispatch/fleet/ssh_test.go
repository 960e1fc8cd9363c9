// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// stdio joins a command's two streams.
type stdio struct {
	io.Reader
	io.Writer
}

func (stdio) Close() error { return nil }

// runDaemon returns what an SSH server runs: nix-daemon --stdio at program.
func runDaemon(d *daemontest.Daemon, program string) sshtest.Exec {
	return func(command string, s sshtest.Stdio) int {
		if command != program+" --stdio" {
			fmt.Fprintf(s.Stderr, "sh: 1: %s: not found\n", command)
			return 127
		}
		if err := d.Serve(stdio{s.Stdin, s.Stdout}); err != nil {
			return 1
		}
		return 0
	}
}

// sshEndpoint is the endpoint of an SSH server.
func sshEndpoint(t *testing.T, server *sshtest.Server, change ...func(*inventory.Endpoint)) inventory.Endpoint {
	t.Helper()
	host, port, err := net.SplitHostPort(server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return endpoint("one", append([]func(*inventory.Endpoint){func(e *inventory.Endpoint) {
		e.Host, e.Port = host, number
		e.HostKeys = []string{sshconn.AuthorizedKey(server.HostKey())}
		e.Credentials = []string{"key"}
	}}, change...)...)
}

// keysDir makes a directory with the credential "key" and returns the public key.
func keysDir(t *testing.T) (string, ssh.PublicKey) {
	t.Helper()
	dir := t.TempDir()
	file, public := sshtest.NewKeyFile(t)
	write(t, filepath.Join(dir, "key", keyName), string(file))
	return dir, public
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestOverSSH(t *testing.T) {
	t.Parallel()
	d := daemontest.New(daemontest.Options{Trust: daemon.Trusted})
	defer d.Close()
	dir, public := keysDir(t)
	server := sshtest.New(t, sshtest.Behavior{
		Exec: runDaemon(d, "/opt/nix/bin/nix-daemon"), AuthorizedKeys: []ssh.PublicKey{public}, Users: []string{"nix"},
	})
	n := &news{}
	f := New(Options{Dial: DialSSH(SSHOptions{KeysDir: dir}), OnChange: n.set, Logger: slog.New(slog.DiscardHandler)})
	defer f.Close()
	f.Update(document(sshEndpoint(t, server, func(e *inventory.Endpoint) { e.RemoteProgram = "/opt/nix/bin/nix-daemon" })))

	info, nar := daemontest.FileInfo(pathA, []byte("hello"))
	for range 3 {
		s := open(t, f)
		if err := s.AddMultipleToStore(t.Context(), one(info, strings.NewReader(string(nar))), nil); err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
	if n := server.Accepted(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}

	s := open(t, f)
	defer s.Close()
	server.CloseConnections()
	_, err := s.QueryValidPaths(t.Context(), []string{pathA}, false, nil)
	lost(t, err, nil)
	// The builder comes back by itself.
	for deadline := time.Now().Add(10 * time.Second); ; {
		again, err := f.Open(t.Context(), "b/one")
		if err == nil {
			again.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestSSHFailures(t *testing.T) {
	t.Parallel()
	d := daemontest.New(daemontest.Options{Trust: daemon.Trusted})
	defer d.Close()
	dir, public := keysDir(t)
	write(t, filepath.Join(dir, "locked", keyName), string(sshtest.NewLockedKeyFile(t)))
	write(t, filepath.Join(dir, "large", keyName), strings.Repeat("x", maxKeyFile+1))
	other := sshconn.AuthorizedKey(sshtest.NewKey(t).PublicKey())
	good := sshtest.Behavior{Exec: runDaemon(d, "nix-daemon"), AuthorizedKeys: []ssh.PublicKey{public}}
	tests := map[string]struct {
		behavior sshtest.Behavior
		change   func(*inventory.Endpoint)
		words    string
		want     []string // all in the error
	}{
		"no key named": {
			behavior: good, change: func(e *inventory.Endpoint) { e.Credentials = nil },
			words: "has no usable key", want: []string{"none is named", "--identity-file"},
		},
		"key missing": {
			behavior: good, change: func(e *inventory.Endpoint) { e.Credentials = []string{"absent"} },
			words: "has no usable key", want: []string{"absent/ssh-privatekey: no such file"},
		},
		"key with passphrase": {
			behavior: good, change: func(e *inventory.Endpoint) { e.Credentials = []string{"locked"} },
			words: "has no usable key", want: []string{"locked/ssh-privatekey", "passphrase"},
		},
		"key too large": {
			behavior: good, change: func(e *inventory.Endpoint) { e.Credentials = []string{"large"} },
			words: "has no usable key", want: []string{"larger than"},
		},
		"broken key beside a good one": {
			behavior: good, change: func(e *inventory.Endpoint) { e.Credentials = []string{"locked", "key"} },
		},
		"key not authorised": {
			behavior: sshtest.Behavior{AuthorizedKeys: []ssh.PublicKey{}},
			words:    "refuses the login", want: []string{"login refused"},
		},
		"no host key": {
			behavior: good, change: func(e *inventory.Endpoint) { e.HostKeys = nil },
			words: "has an unknown host key", want: []string{"8th column", "--known-hosts"},
		},
		"malformed host key": {
			behavior: good, change: func(e *inventory.Endpoint) { e.HostKeys = []string{"ssh-ed25519 nonsense"} },
			words: "unreachable", want: []string{"host key", "malformed"},
		},
		"other host key": {
			behavior: good, change: func(e *inventory.Endpoint) { e.HostKeys = []string{other} },
			words: "has another host key", want: []string{"host key changed", "SHA256:"},
		},
		"nix-daemon missing": {
			behavior: sshtest.Behavior{},
			words:    "has no working nix-daemon", want: []string{"it wrote:", "not found"},
		},
		"shell greets": {
			behavior: sshtest.Behavior{Exec: func(_ string, s sshtest.Stdio) int {
				io.WriteString(s.Stdout, "Welcome to builder one\n")
				io.Copy(io.Discard, s.Stdin)
				return 0
			}},
			words: "prints text at login", want: []string{"Welcome to builder one"},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := sshtest.New(t, tc.behavior)
			e := sshEndpoint(t, server)
			if tc.change != nil {
				tc.change(&e)
			}
			f := New(Options{
				Dial:     DialSSH(SSHOptions{KeysDir: dir}),
				OnChange: func([]scheduler.Builder) {},
				Logger:   slog.New(slog.DiscardHandler),
			})
			defer f.Close()
			f.Update(document(e))
			s, err := f.Open(t.Context(), "b/one")
			if tc.words == "" {
				if err != nil {
					t.Fatal(err)
				}
				s.Close()
				return
			}
			lost(t, err, nil)
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q lacks %q", err, want)
				}
			}
			if got := f.Builders()[0].Down; got != tc.words {
				t.Errorf("the builder %q, want %q", got, tc.words)
			}
			if strings.Contains(err.Error(), "PRIVATE KEY") {
				t.Error("the error shows a key")
			}
		})
	}
}

func TestIdentityFileAndKnownHosts(t *testing.T) {
	t.Parallel()
	d := daemontest.New(daemontest.Options{Trust: daemon.Trusted})
	defer d.Close()
	dir, _ := keysDir(t)
	server := sshtest.New(t, sshtest.Behavior{Exec: runDaemon(d, "nix-daemon")})
	e := sshEndpoint(t, server, func(e *inventory.Endpoint) { e.HostKeys, e.Credentials = nil, nil })
	file := filepath.Join(t.TempDir(), "known_hosts")
	opts := SSHOptions{IdentityFile: filepath.Join(dir, "key", keyName), KnownHosts: file}

	_, err := DialSSH(opts)(t.Context(), e)
	if !errors.Is(err, errHostKey) {
		t.Errorf("without the file: %v, want %v", err, errHostKey)
	}
	write(t, file, "other "+sshconn.AuthorizedKey(server.HostKey())+"\n")
	if _, err = DialSSH(opts)(t.Context(), e); !errors.Is(err, errHostKey) || !strings.Contains(err.Error(), sshconn.KnownHostName(e.Host, e.Port)) {
		t.Errorf("without a line: %v, want %v", err, errHostKey)
	}
	write(t, file, sshconn.KnownHostName(e.Host, e.Port)+" "+sshconn.AuthorizedKey(server.HostKey())+"\n")
	conn, err := DialSSH(opts)(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestPause(t *testing.T) {
	t.Parallel()
	refusedLogin := &sshconn.Error{Kind: sshconn.KindAuthRefused}
	tests := map[string]struct {
		failures   int
		err        error
		least, top time.Duration
	}{
		"first":          {0, errCut, firstPause / 2, 2 * firstPause},
		"fourth":         {3, errCut, 4 * firstPause, 16 * firstPause},
		"many":           {1000, errCut, maxPause / 2, 2 * maxPause},
		"turned away":    {0, &sshconn.Error{Kind: sshconn.KindTurnedAway}, turnedAwayPause / 2, 2 * turnedAwayPause},
		"refused":        {0, refusedLogin, refusedPause / 2, 2 * refusedPause},
		"refused, often": {50, refusedLogin, maxRefusedPause / 2, 2 * maxRefusedPause},
	}
	for name, tc := range tests {
		for range 20 {
			if got := pause(tc.failures, tc.err); got < tc.least || got > tc.top {
				t.Errorf("%s: %v, want between %v and %v", name, got, tc.least, tc.top)
			}
		}
	}
}
