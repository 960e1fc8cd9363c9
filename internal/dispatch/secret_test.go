// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/crypto/ssh"

	"nixbuilder.io/nix-builder-operator/internal/dispatch/fleet"
	"nixbuilder.io/nix-builder-operator/internal/dispatch/metrics"
	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// A builder for every secret, used as key, as certificate, as the file of a line
// and, by mistake, as host key. A client builds on each; all that comes out of the
// dispatcher at its highest verbosity is looked through.
func TestNoKeyMaterial(t *testing.T) {
	secrets, public := sshtest.NewKeyFiles(t)
	secrets["large"] = bytes.Repeat([]byte("0123456789abcdefSECRET\n"), 10000)
	nix := daemontest.New(daemontest.Options{Trust: daemon.Trusted})
	defer nix.Close()
	server := sshtest.New(t, sshtest.Behavior{AuthorizedKeys: []ssh.PublicKey{public}, Exec: func(_ string, s sshtest.Stdio) int {
		_ = nix.Serve(struct {
			io.Reader
			io.WriteCloser
		}{s.Stdin, nopCloser{s.Stdout}})
		return 0
	}})
	dir := t.TempDir()
	document := secretBuilders(t, dir, server, secrets)
	r := newRig(t, rigOptions{dial: fleet.DialSSH(fleet.SSHOptions{KeysDir: dir})})
	r.fleet.Update(document)
	registry := prometheus.NewPedanticRegistry()
	if _, err := metrics.New(registry, metrics.Sources{
		Ledger: r.ledger, Fleet: r.fleet, Spool: r.spool, Connections: r.server.Connections, Phases: r.server.Phases,
	}); err != nil {
		t.Fatal(err)
	}
	var told strings.Builder
	for i, e := range document.Builders {
		built := buildOrWait(t, r, uint32(i+1), e, &told)
		if want := e.Name == "good" || e.Name == "file-good"; built != want {
			t.Errorf("built on %s: %t, want %t", e.Name, built, want)
		}
		_, err := r.fleet.Open(t.Context(), e.ID())
		fmt.Fprintf(&told, "%v %+v\n", err, err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&told, "%v %+v %v", families, r.fleet.Builders(), r.events.all())
	shown := told.String() + r.log.String()
	for _, want := range []string{"b/locked has no usable key since", "passphrase", "builder_up", "Builder is down", "Client connected"} {
		if !strings.Contains(shown, want) {
			t.Errorf("%q was not shown: the test looks at less than it should", want)
		}
	}
	// A key file holds its public half too, which begins as every host key does.
	shown = strings.ReplaceAll(shown, sshconn.AuthorizedKey(server.HostKey()), "")
	for name, secret := range secrets {
		if leaked := sshtest.Leaked(shown, secret); leaked != "" {
			t.Errorf("the %s key is shown: %q", name, leaked)
		}
	}
}

// secretBuilders returns four builders for every secret, whose keys are in dir.
func secretBuilders(t *testing.T, dir string, server *sshtest.Server, secrets map[string][]byte) inventory.Document {
	t.Helper()
	host, portText, _ := net.SplitHostPort(server.Addr())
	port, err := strconv.Atoi(portText)
	if err != nil {
		t.Fatal(err)
	}
	document := inventory.Document{SchemaVersion: inventory.SchemaVersion}
	add := func(name string, change func(*inventory.Endpoint)) {
		e := inventory.Endpoint{
			Builder: "b", Name: name, Host: host, Port: port, User: "nix",
			HostKeys: []string{sshconn.AuthorizedKey(server.HostKey())}, Credentials: []string{name},
			Systems: []string{system}, SupportedFeatures: []string{"only-" + name}, Slots: 1, SpeedFactor: 1, State: inventory.StateHealthy,
		}
		change(&e)
		document.Builders = append(document.Builders, e)
	}
	save := func(name, file string, content []byte) {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, file), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, secret := range secrets {
		save(name, "ssh-privatekey", secret)
		add(name, func(*inventory.Endpoint) {})
		save("cert-"+name, "ssh-privatekey", secrets["good"])
		save("cert-"+name, "ssh-privatekey-cert.pub", secret)
		add("cert-"+name, func(*inventory.Endpoint) {})
		add("file-"+name, func(e *inventory.Endpoint) {
			e.Credentials, e.IdentityFile = nil, filepath.Join(dir, name, "ssh-privatekey")
		})
		add("host-"+name, func(e *inventory.Endpoint) {
			e.Credentials, e.HostKeys = []string{"good"}, []string{string(secret)}
		})
	}
	return document
}

// buildOrWait builds on one builder, or leaves once it was told why that waits.
func buildOrWait(t *testing.T, r *rig, hook uint32, e inventory.Endpoint, told io.Writer) (built bool) {
	t.Helper()
	c := r.connect(hook, system+".0")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	d := newDerivation("out-" + e.Name).requiring("only-" + e.Name)
	result, err := c.BuildDerivation(ctx, d.path, &d.BasicDerivation, daemon.BuildNormal, func(m daemon.Message) error {
		fmt.Fprintf(told, "%+v\n", m)
		if next, ok := m.(daemon.Next); ok && strings.Contains(next.Text, "since") {
			cancel()
		}
		return nil
	})
	fmt.Fprintf(told, "%+v %v\n", result, err)
	return err == nil && result.Status.Success()
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
