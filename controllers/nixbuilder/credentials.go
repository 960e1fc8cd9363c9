// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
)

const (
	// credentialInterval is the longest time before a changed Secret is noticed.
	// Secrets are not watched: that would take the right to list all of them.
	credentialInterval = 60 * time.Second
	// credentialRetry is the same while a Secret cannot be used: somebody is
	// probably about to correct it, and looks at the status then.
	credentialRetry = 10 * time.Second
	// credentialJitter is the part of the interval over which reads are spread.
	credentialJitter = 0.25
	// forbiddenGrace is how long the API server may refuse to show a Secret that
	// it showed before until that is believed. While it starts, and while roles
	// are replaced, it refuses for a moment what is allowed.
	forbiddenGrace = time.Minute
)

// refusals remembers since when the API server refuses to show Secrets.
type refusals struct {
	mu    sync.Mutex
	since map[probe.Key]time.Time // by builder
}

// last returns for how long it has refused those of a builder by now.
func (f *refusals) last(builder probe.Key, now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.since[builder]; !ok {
		if f.since == nil {
			f.since = map[probe.Key]time.Time{}
		}
		f.since[builder] = now
	}
	return now.Sub(f.since[builder])
}

func (f *refusals) forget(builder probe.Key) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.since, builder)
}

// readCredentials reads the Secrets that the spec names, past any cache. One
// that cannot be used is a verdict; only trouble with the API server is an
// error.
func (r *Reconciler) readCredentials(ctx context.Context, s *scope) error {
	if s.accepted.status != metav1.ConditionTrue {
		s.credentialsValid = unknown(v1alpha1.ReasonNotAccepted, notAcceptedMessage)
		return nil
	}
	names := secretNames(&s.builder.Spec)
	usable := map[string]probe.Credential{}
	unusable, forbidden := 0, false
	for _, name := range names {
		credential, reason, message, err := r.readCredential(ctx, s, name)
		if err != nil {
			return err
		}
		if reason == v1alpha1.ReasonSecretForbidden {
			forbidden = true
			if s.readSecrets() && r.refusals.last(s.key, s.now) < forbiddenGrace {
				return fmt.Errorf("read Secret %s: not allowed, though it was; what is known of it stands for %s", name, forbiddenGrace)
			}
		}
		if reason == "" {
			usable[name] = credential
			continue
		}
		if unusable++; unusable == 1 {
			s.credentialsValid = fails(reason, message)
		}
	}
	s.takeCredentials(usable)
	interval := credentialRetry
	if unusable == 0 {
		interval = credentialInterval
	}
	s.wakeIn(time.Duration(float64(interval) * (1 - credentialJitter*r.jitter())))
	if !forbidden {
		r.refusals.forget(s.key)
	}
	switch {
	case unusable == 0:
		s.credentialsValid = holds(v1alpha1.ReasonCredentialsUsable, "every Secret holds a usable key")
	case len(names) > 1:
		s.credentialsValid.message += fmt.Sprintf(" (%d of %d Secrets)", unusable, len(names))
	}
	return nil
}

// readSecrets reports whether the last pass that wrote status was allowed to read
// Secrets.
func (s *scope) readSecrets() bool {
	last := s.builder.Status.Condition(v1alpha1.ConditionCredentialsValid)
	return last != nil && last.Status != metav1.ConditionUnknown && last.Reason != v1alpha1.ReasonSecretForbidden
}

// readCredential reads one Secret. What is in it appears in no message.
func (r *Reconciler) readCredential(ctx context.Context, s *scope, name string) (_ probe.Credential, reason, message string, _ error) {
	none := probe.Credential{}
	// From some level on, client-go logs what it receives.
	ctx = logr.NewContext(ctx, logr.Discard())
	var secret corev1.Secret
	err := r.secrets.Get(ctx, client.ObjectKey{Namespace: s.builder.Namespace, Name: name}, &secret)
	switch {
	case apierrors.IsNotFound(err):
		return none, v1alpha1.ReasonSecretNotFound, fmt.Sprintf(
			"Secret %s does not exist. Create it with: %s", name, createSecret(s.builder.Namespace, name)), nil
	case apierrors.IsForbidden(err):
		return none, v1alpha1.ReasonSecretForbidden, fmt.Sprintf(
			"The operator may not read Secret %s: grant its service account get on secrets in namespace %s", name, s.builder.Namespace), nil
	case err != nil:
		return none, "", "", fmt.Errorf("read Secret %s: %w", name, err)
	}
	if secret.Type != corev1.SecretTypeSSHAuth {
		return none, v1alpha1.ReasonSecretWrongType, fmt.Sprintf(
			"Secret %s has type %s, not %s. The type of a Secret cannot be changed: kubectl -n %s delete secret %s, then %s",
			name, secret.Type, corev1.SecretTypeSSHAuth, s.builder.Namespace, name, createSecret(s.builder.Namespace, name)), nil
	}
	if secret.Labels[v1alpha1.CredentialLabel] != "true" {
		return none, v1alpha1.ReasonSecretNotLabelled, fmt.Sprintf(
			"Secret %s is not released for use by builders: kubectl -n %s label secret %s %s=true",
			name, s.builder.Namespace, name, v1alpha1.CredentialLabel), nil
	}
	credential := probe.Credential{
		Name:        name,
		PrivateKey:  secret.Data[corev1.SSHAuthPrivateKey],
		Certificate: secret.Data[v1alpha1.CredentialCertificateKey],
	}
	if keyReason, keyMessage, ok := probe.CheckCredential(credential, s.now); !ok {
		return none, string(keyReason), keyMessage, nil
	}
	return credential, "", "", nil
}

// createSecret is how to make a Secret that can be used.
func createSecret(namespace, name string) string {
	return fmt.Sprintf("kubectl -n %s create secret generic %s --type=%s --from-file=%s=<private key file>, then kubectl -n %s label secret %s %s=true",
		namespace, name, corev1.SecretTypeSSHAuth, corev1.SSHAuthPrivateKey, namespace, name, v1alpha1.CredentialLabel)
}
