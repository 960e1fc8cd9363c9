// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"bytes"
	"context"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
	"nixbuilder.io/nix-builder-operator/test/captured"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// TestSecretIsNeverShown formats, encodes and logs a target in all usual ways.
func TestSecretIsNeverShown(t *testing.T) {
	t.Parallel()
	const word = "swordfish"
	target := Target{Credentials: []Credential{{Name: "k", PrivateKey: Secret(word), Certificate: Secret(word)}}}
	var shown bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		fmt.Fprintf(&shown, verb+"\n", target)
		fmt.Fprintf(&shown, verb+"\n", &target)
		fmt.Fprintf(&shown, verb+"\n", target.Credentials[0].PrivateKey)
	}
	for _, handler := range []slog.Handler{slog.NewTextHandler(&shown, nil), slog.NewJSONHandler(&shown, nil)} {
		slog.New(handler).Info("x", "target", target, "secret", target.Credentials[0].PrivateKey)
	}
	text, err := json.Marshal(target)
	if err != nil {
		t.Error(err)
	}
	shown.Write(text)
	if leaked := sshtest.Leaked(shown.String(), []byte(word)); leaked != "" {
		t.Errorf("shown: %q in\n%s", leaked, shown.String())
	}
	if !strings.Contains(shown.String(), "[redacted, 9 bytes]") {
		t.Errorf("no placeholder in\n%s", shown.String())
	}
}

// TestNoKeyMaterial runs the prober with good, malformed, locked and refused keys at
// the highest verbosity and looks through everything that comes out of it.
func TestNoKeyMaterial(t *testing.T) {
	t.Parallel()
	secrets, public := sshtest.NewKeyFiles(t)
	server := sshtest.New(t, sshtest.Behavior{
		AuthorizedKeys: []ssh.PublicKey{public}, Exec: newNix(t, daemontest.Options{}).exec,
	})
	var log captured.Text
	changed := make(chan struct{}, 100)
	p := New(Options{
		Dial:     sshconn.NewDialer(nil),
		Log:      slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug - 100})),
		OnChange: func(Key) { changed <- struct{}{} },
	})
	var targets []Target
	for name, secret := range secrets {
		for _, certificate := range [][]byte{nil, secret} {
			target := targetFor(t, server)
			target.Endpoint = fmt.Sprintf("%s-%d", name, len(certificate))
			target.Credentials = []Credential{{Name: name, PrivateKey: secret, Certificate: certificate}}
			targets = append(targets, target)
		}
		// Somebody puts the key where the host key belongs.
		target := targetFor(t, server)
		target.Endpoint, target.HostKeys = name+"-host", []string{string(secret)}
		targets = append(targets, target)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var work sync.WaitGroup
	work.Go(func() { _ = p.Start(ctx) })
	p.Set(builder, targets)
	for range targets {
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatal("not all targets were probed")
		}
	}
	cancel()
	work.Wait()
	out, err := json.Marshal(p.Snapshot(builder))
	if err != nil {
		t.Fatal(err)
	}
	shown := log.String() + string(out) + fmt.Sprintf("%+v", p.Snapshot(builder))
	// A key file holds its public half too, which begins as every host key does.
	shown = strings.ReplaceAll(shown, sshconn.AuthorizedKey(server.HostKey()), "")
	for _, secret := range secrets {
		// Nor is it a secret: messages tell which line authorizes a key.
		if signer, err := ssh.ParsePrivateKey(secret); err == nil {
			shown = strings.ReplaceAll(shown, sshconn.AuthorizedKey(signer.PublicKey()), "")
		}
	}
	for name, secret := range secrets {
		if leaked := sshtest.Leaked(shown, secret); leaked != "" {
			t.Errorf("the %s key is shown: %q", name, leaked)
		}
	}
	if healthy := p.Snapshot(builder)["good-0"]; healthy.State != StateHealthy {
		t.Errorf("the good key does not work: %+v", healthy)
	}
	if !strings.Contains(shown, "Probed builder") {
		t.Error("nothing was logged")
	}
}

// dsaKey is a private key of a type that OpenSSH has dropped. Its numbers are toys.
func dsaKey(tb testing.TB) []byte {
	tb.Helper()
	text, err := asn1.Marshal(struct{ Version, P, Q, G, Public, Private int }{0, 23, 11, 4, 9, 6})
	if err != nil {
		tb.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "DSA PRIVATE KEY", Bytes: text})
}

func TestCheckCredential(t *testing.T) {
	t.Parallel()
	file, public := sshtest.NewKeyFile(t)
	other, _ := sshtest.NewKeyFile(t)
	authority := sshtest.NewKey(t)
	now := time.Now()
	certificate := func(after, before time.Time) Secret {
		return ssh.MarshalAuthorizedKey(sshtest.NewCertificate(t, authority, sshtest.Certificate{
			Key: public, Type: ssh.UserCert, Principals: []string{"nixt"}, ValidAfter: after, ValidBefore: before,
		}))
	}
	valid := certificate(now.Add(-time.Hour), now.Add(time.Hour))
	tests := map[string]struct {
		credential Credential
		want       Reason
	}{
		"key":                  {Credential{PrivateKey: file}, ReasonCredentialUsable},
		"certificate":          {Credential{PrivateKey: file, Certificate: valid}, ReasonCredentialUsable},
		"for ever":             {Credential{PrivateKey: file, Certificate: certificate(time.Time{}, time.Time{})}, ReasonCredentialUsable},
		"expired":              {Credential{PrivateKey: file, Certificate: certificate(now.Add(-2*time.Hour), now.Add(-time.Hour))}, ReasonCertificateOutOfDate},
		"not yet valid":        {Credential{PrivateKey: file, Certificate: certificate(now.Add(time.Hour), now.Add(2*time.Hour))}, ReasonCertificateOutOfDate},
		"other key":            {Credential{PrivateKey: other, Certificate: valid}, ReasonCertificateMismatch},
		"no certificate":       {Credential{PrivateKey: file, Certificate: Secret("x")}, ReasonCertificateMalformed},
		"passphrase":           {Credential{PrivateKey: sshtest.NewLockedKeyFile(t)}, ReasonKeyPassphrase},
		"public":               {Credential{PrivateKey: ssh.MarshalAuthorizedKey(public)}, ReasonKeyIsPublic},
		"malformed":            {Credential{PrivateKey: Secret("x")}, ReasonKeyMalformed},
		"empty":                {Credential{}, ReasonKeyMalformed},
		"no final newline":     {Credential{PrivateKey: bytes.TrimSpace(file)}, ReasonKeyMalformed},
		"Windows line ends":    {Credential{PrivateKey: bytes.ReplaceAll(file, []byte("\n"), []byte("\r\n"))}, ReasonKeyMalformed},
		"DSA is not supported": {Credential{PrivateKey: dsaKey(t)}, ReasonKeyUnsupported},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tc.credential.Name = "builder-key"
			reason, message, ok := CheckCredential(tc.credential, now)
			if reason != tc.want || ok != (tc.want == ReasonCredentialUsable) || !strings.HasPrefix(message, "Secret builder-key: ") {
				t.Errorf("got %s (%v): %s", reason, ok, message)
			}
		})
	}
}

// What ssh itself cannot read is said to be that, and how to store it.
func TestKeyFormIsNamed(t *testing.T) {
	t.Parallel()
	file, _ := sshtest.NewKeyFile(t)
	for want, key := range map[string][]byte{
		"lacks the newline at its end": bytes.TrimSpace(file),
		"has CRLF line ends":           bytes.ReplaceAll(file, []byte("\n"), []byte("\r\n")),
	} {
		_, message, _ := CheckCredential(Credential{Name: "k", PrivateKey: key}, time.Now())
		if !strings.Contains(message, want) || !strings.Contains(message, "--from-file=ssh-privatekey=FILE") {
			t.Errorf("got %q, want %q", message, want)
		}
	}
}

func TestCheckHostKey(t *testing.T) {
	t.Parallel()
	key := sshtest.NewKey(t).PublicKey()
	line := sshconn.AuthorizedKey(key)
	got, fingerprint, err := CheckHostKey(line + " root@mac-2")
	if err != nil || got != line || fingerprint != sshconn.Fingerprint(key) {
		t.Errorf("got %q %q %v", got, fingerprint, err)
	}
	if _, _, err := CheckHostKey("correct horse"); err == nil || strings.Contains(err.Error(), "horse") {
		t.Errorf("got %v", err)
	}
}
