// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package builders makes API objects for tests in few words:
//
//	MakeNixBuilder("mac").Endpoint("mac-1", "192.0.2.1").Systems("aarch64-darwin").Obj()
//
// What a chain does not name is filled so that the API server accepts it.
package builders

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
)

// DefaultSecret is the Secret that builders name unless told otherwise.
const DefaultSecret = "builder-key"

// NixBuilderWrapper builds a NixBuilder. Its methods change it and return it.
type NixBuilderWrapper struct {
	object v1alpha1.NixBuilder
}

// MakeNixBuilder starts a builder of that name in namespace default, with user
// nix and Secret [DefaultSecret], with the defaults that the API server would
// fill in, and without endpoints.
func MakeNixBuilder(name string) *NixBuilderWrapper {
	room := resource.MustParse("1Gi")
	return &NixBuilderWrapper{object: v1alpha1.NixBuilder{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: metav1.NamespaceDefault},
		Spec: v1alpha1.NixBuilderSpec{
			User:          "nix",
			Discovery:     v1alpha1.DiscoveryEnabled,
			HostKeyPolicy: v1alpha1.HostKeyStrict,
			Credentials: v1alpha1.Credentials{
				SecretRefs: []v1alpha1.SecretReference{{Name: DefaultSecret}},
			},
			Probe: v1alpha1.Probe{
				IntervalSeconds:  30,
				TimeoutSeconds:   10,
				FailureThreshold: 3,
				Canary:           v1alpha1.CanaryDisabled,
				KeptConnection:   v1alpha1.KeptConnectionEnabled,
			},
			Thresholds: v1alpha1.Thresholds{MinFreeSpace: &room, MaxClockSkewSeconds: 300},
		},
	}}
}

// Obj returns the builder as it is now.
func (w *NixBuilderWrapper) Obj() *v1alpha1.NixBuilder { return w.object.DeepCopy() }

// Namespace puts the builder into a namespace.
func (w *NixBuilderWrapper) Namespace(namespace string) *NixBuilderWrapper {
	w.object.Namespace = namespace
	return w
}

// UID sets the UID, for tests without an API server.
func (w *NixBuilderWrapper) UID(uid types.UID) *NixBuilderWrapper {
	w.object.UID = uid
	return w
}

// Generation sets the generation, for tests without an API server.
func (w *NixBuilderWrapper) Generation(generation int64) *NixBuilderWrapper {
	w.object.Generation = generation
	return w
}

// Created sets the creation time, for tests without an API server.
func (w *NixBuilderWrapper) Created(at time.Time) *NixBuilderWrapper {
	w.object.CreationTimestamp = metav1.NewTime(at)
	return w
}

// Annotation sets an annotation.
func (w *NixBuilderWrapper) Annotation(key, value string) *NixBuilderWrapper {
	if w.object.Annotations == nil {
		w.object.Annotations = map[string]string{}
	}
	w.object.Annotations[key] = value
	return w
}

// Endpoint adds an endpoint on port 22 with host key HostKey(host).
func (w *NixBuilderWrapper) Endpoint(name, host string) *NixBuilderWrapper {
	return w.EndpointWith(v1alpha1.Endpoint{Name: name, Host: host})
}

// EndpointWith adds an endpoint. Port and host keys are filled as Endpoint
// does where they are absent.
func (w *NixBuilderWrapper) EndpointWith(endpoint v1alpha1.Endpoint) *NixBuilderWrapper {
	if endpoint.Port == 0 {
		endpoint.Port = 22
	}
	if endpoint.HostKeys == nil && w.object.Spec.HostKeyPolicy == v1alpha1.HostKeyStrict {
		endpoint.HostKeys = []string{HostKey(endpoint.Host)}
	}
	w.object.Spec.Endpoints = append(w.object.Spec.Endpoints, endpoint)
	return w
}

// TrustOnFirstUse sets that policy and takes away the endpoints' host keys.
func (w *NixBuilderWrapper) TrustOnFirstUse() *NixBuilderWrapper {
	w.object.Spec.HostKeyPolicy = v1alpha1.HostKeyTrustOnFirstUse
	for i := range w.object.Spec.Endpoints {
		w.object.Spec.Endpoints[i].HostKeys = nil
	}
	return w
}

// Secrets names the Secrets to log in with.
func (w *NixBuilderWrapper) Secrets(names ...string) *NixBuilderWrapper {
	w.object.Spec.Credentials.SecretRefs = nil
	for _, name := range names {
		w.object.Spec.Credentials.SecretRefs = append(w.object.Spec.Credentials.SecretRefs, v1alpha1.SecretReference{Name: name})
	}
	return w
}

// Systems declares systems.
func (w *NixBuilderWrapper) Systems(systems ...string) *NixBuilderWrapper {
	w.object.Spec.Systems = systems
	return w
}

// Features declares supported features.
func (w *NixBuilderWrapper) Features(features ...string) *NixBuilderWrapper {
	w.object.Spec.SupportedFeatures = features
	return w
}

// MandatoryFeatures declares mandatory features.
func (w *NixBuilderWrapper) MandatoryFeatures(features ...string) *NixBuilderWrapper {
	w.object.Spec.MandatoryFeatures = features
	return w
}

// MaxJobs declares how many builds each endpoint runs at once.
func (w *NixBuilderWrapper) MaxJobs(jobs int32) *NixBuilderWrapper {
	w.object.Spec.MaxJobs = jobs
	return w
}

// Cordon cordons the whole builder, for ever if until is zero.
func (w *NixBuilderWrapper) Cordon(reason string, until time.Time) *NixBuilderWrapper {
	w.object.Spec.Cordon = MakeCordon(reason, until)
	return w
}

// EndpointStatus adds the status of an endpoint.
func (w *NixBuilderWrapper) EndpointStatus(status v1alpha1.EndpointStatus) *NixBuilderWrapper {
	w.object.Status.Endpoints = append(w.object.Status.Endpoints, status)
	return w
}

// Condition adds a condition.
func (w *NixBuilderWrapper) Condition(conditionType string, status metav1.ConditionStatus, reason string) *NixBuilderWrapper {
	w.object.Status.Conditions = append(w.object.Status.Conditions, metav1.Condition{
		Type:               conditionType,
		Status:             status,
		Reason:             reason,
		ObservedGeneration: w.object.Generation,
	})
	return w
}

// Change applies a function to the object, for what no method covers.
func (w *NixBuilderWrapper) Change(change func(*v1alpha1.NixBuilder)) *NixBuilderWrapper {
	change(&w.object)
	return w
}

// MakeCordon returns a cordon, for ever if until is zero.
func MakeCordon(reason string, until time.Time) *v1alpha1.Cordon {
	cordon := &v1alpha1.Cordon{Reason: reason}
	if !until.IsZero() {
		cordon.Until = &metav1.Time{Time: until}
	}
	return cordon
}

// HostKey returns a well-formed ssh-ed25519 public key line that is always the
// same for a seed and differs between seeds. Nobody has its private key.
func HostKey(seed string) string {
	const algorithm = "ssh-ed25519"
	point := sha256.Sum256([]byte(seed))
	blob := binary.BigEndian.AppendUint32(nil, uint32(len(algorithm)))
	blob = append(blob, algorithm...)
	blob = binary.BigEndian.AppendUint32(blob, uint32(len(point)))
	blob = append(blob, point[:]...)
	return algorithm + " " + base64.StdEncoding.EncodeToString(blob)
}
