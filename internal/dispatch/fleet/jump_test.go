// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// direct passes connections on to where they want to go.
func direct(address string) (net.Conn, error) { return net.Dial("tcp", address) }

// behind puts an endpoint behind a jump host whose key is "jump".
func behind(t *testing.T, jump *sshtest.Server) func(*inventory.Endpoint) {
	t.Helper()
	e := sshEndpoint(t, jump)
	return func(target *inventory.Endpoint) {
		target.Jump = &inventory.Jump{Host: e.Host, Port: e.Port, User: "hop", HostKeys: e.HostKeys, Credentials: []string{"jump"}}
	}
}

func TestThroughJumpHost(t *testing.T) {
	t.Parallel()
	d := daemontest.New(daemontest.Options{Trust: daemon.Trusted})
	defer d.Close()
	dir, public := keysDir(t)
	file, jumpPublic := sshtest.NewKeyFile(t)
	write(t, filepath.Join(dir, "jump", keyName), string(file))
	jump := sshtest.New(t, sshtest.Behavior{Forward: direct, Users: []string{"hop"}, AuthorizedKeys: []ssh.PublicKey{jumpPublic}})
	server := sshtest.New(t, sshtest.Behavior{
		Exec: runDaemon(d, "nix-daemon"), AuthorizedKeys: []ssh.PublicKey{public}, Users: []string{"nix"},
	})
	n := &news{}
	f := New(Options{Dial: DialSSH(SSHOptions{KeysDir: dir}), OnChange: n.set, Logger: slog.New(slog.DiscardHandler)})
	defer f.Close()
	f.Update(document(sshEndpoint(t, server, behind(t, jump))))
	s := open(t, f)
	defer s.Close()
	if jump.Accepted() != 1 || server.Accepted() != 1 {
		t.Errorf("%d connections to the jump host and %d to the builder, want 1 and 1", jump.Accepted(), server.Accepted())
	}

	jump.Set(sshtest.Behavior{AuthorizedKeys: []ssh.PublicKey{}})
	jump.CloseConnections()
	_, err := s.QueryValidPaths(t.Context(), []string{pathA}, false, nil)
	var loss *LostError
	if !errors.As(err, &loss) || loss.Brief() != "its jump host: connection lost" || loss.Silent() {
		t.Errorf("got %v", err)
	}
	awaitDown(t, f, n, "is behind a jump host that refuses the login")

	// Without its key, it is the dispatcher's fault.
	if err := os.Remove(filepath.Join(dir, "jump", keyName)); err != nil {
		t.Fatal(err)
	}
	f.Update(document(sshEndpoint(t, server, behind(t, jump), func(e *inventory.Endpoint) { e.Jump.User = "other" })))
	awaitDown(t, f, n, "has no usable key")
}

// awaitDown waits until the only builder is down for the reason given.
func awaitDown(t *testing.T, f *Fleet, n *news, want string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		s, err := f.Open(t.Context(), "b/one")
		if err == nil {
			s.Close()
		}
		down := n.down(t, "b/one")
		if down == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("it %q, not %q (%v)", down, want, err)
		}
	}
}

func TestDescribeJump(t *testing.T) {
	t.Parallel()
	at := func(kind sshconn.Kind) error { return &sshconn.Error{Kind: kind, JumpHost: true} }
	lost := func(err error) error { return &sshconn.Error{Kind: sshconn.KindLost, Err: err} }
	tests := map[string]struct {
		err        error
		want       string
		wantBrief  string
		wantSilent bool
	}{
		"refused":            {err: at(sshconn.KindRefused), want: "is behind a jump host that refuses connections", wantBrief: "its jump host: connection refused"},
		"lost":               {err: lost(at(sshconn.KindLost)), want: "is behind a jump host that is unreachable", wantBrief: "its jump host: connection lost"},
		"silent":             {err: lost(at(sshconn.KindKeepalive)), want: "is behind a jump host that is unreachable", wantBrief: "its jump host: keepalive unanswered", wantSilent: true},
		"wrapped":            {err: fmt.Errorf("dial: %w", at(sshconn.KindTurnedAway)), want: "is behind a jump host that turns connections away", wantBrief: "its jump host: turned away"},
		"forwarding refused": {err: &sshconn.Error{Kind: sshconn.KindForwardRefused}, want: "is refused by its jump host", wantBrief: "forwarding refused"},
		"the builder itself": {err: &sshconn.Error{Kind: sshconn.KindRefused}, want: "refuses connections", wantBrief: "connection refused"},
	}
	for name, tc := range tests {
		loss := &LostError{Builder: "b/one", Err: tc.err}
		if got := describe(tc.err); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
		if loss.Brief() != tc.wantBrief || loss.Silent() != tc.wantSilent {
			t.Errorf("%s: lost (%s), silent: %v", name, loss.Brief(), loss.Silent())
		}
	}
}

func TestDoors(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &doors{open: map[string]*door{}}
		enter := func(address string) func() {
			leave, err := d.enter(t.Context(), address)
			if err != nil {
				t.Fatal(err)
			}
			return leave
		}
		first, second, elsewhere := enter("a"), enter("a"), enter("b")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errSilent)
		defer cancel()
		if _, err := d.enter(ctx, "a"); !errors.Is(err, errSilent) {
			t.Errorf("the third got %v", err)
		}
		var work sync.WaitGroup
		work.Go(func() { enter("a")() })
		synctest.Wait()
		first()
		first()
		work.Wait()
		second()
		elsewhere()
		if len(d.open) != 0 {
			t.Errorf("%d doors are left", len(d.open))
		}
	})
}

func TestJumpKeysOfEndpointCount(t *testing.T) {
	t.Parallel()
	jump := sshtest.New(t, sshtest.Behavior{Forward: direct})
	dir, _ := keysDir(t)
	server := sshtest.New(t, sshtest.Behavior{})
	e := sshEndpoint(t, server, behind(t, jump), func(e *inventory.Endpoint) {
		e.Jump.Credentials = []string{"key"}
		e.Jump.HostKeys = []string{"nonsense"}
	})
	_, err := DialSSH(SSHOptions{KeysDir: dir})(t.Context(), e)
	if err == nil || !strings.Contains(err.Error(), "jump host: host key") {
		t.Errorf("got %v", err)
	}
	if jump.Accepted() != 0 {
		t.Error("it was connected to")
	}
}
