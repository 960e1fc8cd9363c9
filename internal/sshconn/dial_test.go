// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshconn

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"

	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shortTimeout is the time for each step in tests that wait for it to pass; it has
// to leave a handshake under the race detector enough of it.
const shortTimeout = time.Second

// loopback dials without the denied ranges, since test servers live on 127.0.0.1.
func loopback() DialFunc { return NewDialer(nil) }

func configFor(tb testing.TB, server *sshtest.Server) Config {
	tb.Helper()
	return Config{
		Address: server.Addr(), User: "nixt",
		Signers:  []ssh.Signer{sshtest.NewKey(tb)},
		HostKeys: HostKeyPolicy{Pinned: []ssh.PublicKey{server.HostKey()}},
		NetDial:  loopback(),
	}
}

func dialWell(tb testing.TB, config Config) *Conn {
	tb.Helper()
	conn, err := Dial(tb.Context(), config)
	if err != nil {
		tb.Fatalf("Dial: %v", err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	return conn
}

// TestDialFaults meets every fault of a server and expects kind and step.
func TestDialFaults(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		behavior   sshtest.Behavior
		timeout    time.Duration // zero where nothing is waited for
		wantKind   Kind
		wantStep   Step
		wantDetail string
	}{
		"closes at once": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultHangUp},
			wantKind: KindTurnedAway, wantStep: StepIdentify,
		},
		"says that there are too many connections": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultText, Text: "Exceeded MaxStartups\r\n"},
			wantKind: KindTurnedAway, wantStep: StepIdentify, wantDetail: "Exceeded MaxStartups",
		},
		"penalises the address": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultText, Text: "Not allowed at this time\r\n"},
			wantKind: KindTurnedAway, wantStep: StepIdentify, wantDetail: "Not allowed at this time",
		},
		"accepts and stays silent": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultSilent}, timeout: shortTimeout,
			wantKind: KindSilent, wantStep: StepIdentify,
		},
		"is dead behind its kernel": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultDead}, timeout: shortTimeout,
			wantKind: KindStalled, wantStep: StepIdentify,
		},
		"speaks HTTP": {
			behavior: sshtest.Behavior{
				Fault: sshtest.FaultText,
				Text:  "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\r\n400 Bad Request",
			},
			wantKind: KindNotSSH, wantStep: StepIdentify,
			wantDetail: "HTTP/1.1 400 Bad Request Content-Type: text/plain 400 Bad Reque…",
		},
		"speaks bytes": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultText, Text: "\x16\x03\x01\x00\xff"},
			wantKind: KindNotSSH, wantStep: StepIdentify,
		},
		"greets and stops": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultStopBeforeKex}, timeout: shortTimeout,
			wantKind: KindTimeout, wantStep: StepKeyExchange,
		},
		"greets and hangs up": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultHangUpAtKex},
			wantKind: KindLost, wantStep: StepKeyExchange,
		},
		"knows old algorithms only": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultOldAlgorithms},
			wantKind: KindNoCommonAlgorithm, wantStep: StepKeyExchange, wantDetail: "key exchange",
		},
		"stops at login": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultStopAtLogin}, timeout: shortTimeout,
			wantKind: KindTimeout, wantStep: StepLogin,
		},
		"hangs up at login": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultHangUpAtLogin},
			wantKind: KindAuthDropped, wantStep: StepLogin,
		},
		"refuses the key": {
			behavior: sshtest.Behavior{AuthorizedKeys: []ssh.PublicKey{}},
			wantKind: KindAuthRefused, wantStep: StepLogin,
		},
		"does not know the user": {
			behavior: sshtest.Behavior{Users: []string{"somebody"}},
			wantKind: KindAuthRefused, wantStep: StepLogin,
		},
		"takes passwords only": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultPasswordOnly},
			wantKind: KindAuthRefused, wantStep: StepLogin, wantDetail: "takes no keys, only: password",
		},
		"wants a password as well": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultSecondFactor},
			wantKind: KindAuthRefused, wantStep: StepLogin, wantDetail: "also asks for: password",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := sshtest.New(t, tc.behavior)
			config := configFor(t, server)
			config.Timeout = tc.timeout
			conn, err := Dial(t.Context(), config)
			if err == nil {
				_ = conn.Close()
				t.Fatal("Dial succeeded")
			}
			got := asError(t, err)
			if got.Kind != tc.wantKind || got.Step != tc.wantStep || got.Detail != tc.wantDetail {
				t.Errorf("got kind %q at %q, detail %q; want %q at %q, %q (%v)",
					got.Kind, got.Step, got.Detail, tc.wantKind, tc.wantStep, tc.wantDetail, err)
			}
			if got.Address != server.Addr() {
				t.Errorf("address is %q", got.Address)
			}
		})
	}
}

func asError(tb testing.TB, err error) *Error {
	tb.Helper()
	var e *Error
	if !errors.As(err, &e) {
		tb.Fatalf("got %T (%v), want *Error", err, err)
	}
	return e
}

// TestDialConnect covers what happens before anything answers.
func TestDialConnect(t *testing.T) {
	t.Parallel()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	network := sshtest.NewNetwork()
	network.BlackHole("hole:22")
	network.UnknownName("nowhere:22")
	failing := func(err error) DialFunc {
		return func(context.Context, string, string) (net.Conn, error) { return nil, err }
	}
	tests := map[string]struct {
		address  string
		dial     DialFunc
		wantKind Kind
	}{
		"refused":        {address: closed.Addr().String(), dial: loopback(), wantKind: KindRefused},
		"black hole":     {address: "hole:22", dial: network.Dial, wantKind: KindTimeout},
		"unknown name":   {address: "nowhere:22", dial: network.Dial, wantKind: KindNameUnknown},
		"name server":    {address: "x:22", dial: failing(&net.DNSError{Err: "server misbehaving"}), wantKind: KindNameLookup},
		"no route":       {address: "x:22", dial: failing(&net.OpError{Err: errors.New("no route to host")}), wantKind: KindUnreachable},
		"denied":         {address: "127.0.0.1:22", dial: nil, wantKind: KindDenied},
		"denied by name": {address: "localhost:22", dial: nil, wantKind: KindDenied},
		"denied v6":      {address: "[::1]:22", dial: nil, wantKind: KindDenied},
		"denied mapped":  {address: "[::ffff:127.0.0.1]:22", dial: nil, wantKind: KindDenied},
		"metadata":       {address: "169.254.169.254:22", dial: nil, wantKind: KindDenied},
		"unspecified":    {address: "0.0.0.0:22", dial: nil, wantKind: KindDenied},
		"chosen range": {
			address: "192.0.2.1:22", wantKind: KindDenied,
			dial: NewDialer([]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}),
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Dial(t.Context(), Config{
				Address: tc.address, User: "nixt", Signers: []ssh.Signer{sshtest.NewKey(t)},
				NetDial: tc.dial, Timeout: shortTimeout,
			})
			got := asError(t, err)
			if got.Kind != tc.wantKind || got.Step != StepConnect {
				t.Errorf("got kind %q at %q, want %q (%v)", got.Kind, got.Step, tc.wantKind, err)
			}
		})
	}
}

func TestDialWithoutKey(t *testing.T) {
	t.Parallel()
	server := sshtest.New(t, sshtest.Behavior{})
	config := configFor(t, server)
	config.Signers = nil
	if _, err := Dial(t.Context(), config); KindOf(err) != KindNoUsableKey {
		t.Errorf("got %v", err)
	}
	if server.Accepted() != 0 {
		t.Error("connected without a key to log in with")
	}
}

func TestDialContext(t *testing.T) {
	t.Parallel()
	server := sshtest.New(t, sshtest.Behavior{Fault: sshtest.FaultStopBeforeKex})
	t.Run("canceled", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("no longer wanted")
		config := configFor(t, server)
		config.AwaitTurn = func(context.Context) error { cancel(cause); return nil }
		_, err := Dial(ctx, config)
		if KindOf(err) != KindCanceled || !errors.Is(err, cause) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("deadline", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithTimeout(t.Context(), shortTimeout)
		defer cancel()
		_, err := Dial(ctx, configFor(t, server))
		if KindOf(err) != KindTimeout || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

// TestAwaitTurn: the turn is taken once per connection, only for peers that are SSH
// servers, and its time is not the peer's.
func TestAwaitTurn(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		fault     sshtest.Fault
		turn      error
		wantKind  Kind
		wantTurns int
	}{
		"taken":          {wantTurns: 1},
		"refused":        {turn: errors.New("full"), wantKind: KindCanceled, wantTurns: 1},
		"never came":     {fault: sshtest.FaultSilent, wantKind: KindSilent},
		"another server": {fault: sshtest.FaultHangUp, wantKind: KindTurnedAway},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := configFor(t, sshtest.New(t, sshtest.Behavior{Fault: tc.fault}))
			config.Timeout = shortTimeout
			turns := 0
			config.AwaitTurn = func(ctx context.Context) error {
				turns++
				if tc.turn == nil {
					timer := time.NewTimer(2 * shortTimeout) // longer than a step may take
					defer timer.Stop()
					<-timer.C
				}
				return tc.turn
			}
			conn, err := Dial(t.Context(), config)
			if err == nil {
				_ = conn.Close()
			}
			if KindOf(err) != tc.wantKind || turns != tc.wantTurns {
				t.Errorf("got %v after %d turns, want kind %q after %d", err, turns, tc.wantKind, tc.wantTurns)
			}
		})
	}
}

// TestPreamble: lines before the identification are allowed by RFC 4253.
func TestPreamble(t *testing.T) {
	t.Parallel()
	server := sshtest.New(t, sshtest.Behavior{Preamble: "Welcome\r\n" + strings.Repeat("x", 200) + "\r\nSSH is not here\r\n"})
	conn := dialWell(t, configFor(t, server))
	if got, want := conn.ServerVersion(), "SSH-2.0-sshtest"; got != want {
		t.Errorf("server version is %q, want %q", got, want)
	}
}

func TestErrorText(t *testing.T) {
	t.Parallel()
	key := sshtest.NewKey(t).PublicKey()
	err := &Error{
		Kind: KindHostKeyChanged, Step: StepKeyExchange, Address: "mac-2:22", Seen: key,
		Expected: []string{"SHA256:a", "SHA256:b"}, Err: errors.New("cause"),
	}
	want := "ssh to mac-2:22: host key changed (at key exchange): seen " + Fingerprint(key) +
		", expected SHA256:a or SHA256:b: cause"
	if err.Error() != want {
		t.Errorf("got  %s\nwant %s", err, want)
	}
}
