// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	corev1apply "k8s.io/client-go/applyconfigurations/core/v1"
	metav1apply "k8s.io/client-go/applyconfigurations/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
)

// outcome is what came of publishing.
type outcome int

const (
	unchanged outcome = iota
	written
	// conflicting: a ConfigMap of that name is not ours.
	conflicting
	// postponed: it is to be written, but was just now; see pace.
	postponed
)

// publish brings the ConfigMap of a namespace to the content, unless it has it
// already or is not ours. Where it was written too often lately, wait says when to
// come again.
//
// The apply is forced: on an object that carries our label, what we apply is
// ours, and a line changed by somebody else would fail builds. Keys and labels
// that others have added to it stay theirs. With the UID of the object that
// was looked at, an apply cannot hit another one that took its place.
func (r *Reconciler) publish(ctx context.Context, namespace string, builders []v1alpha1.NixBuilder, content *Content) (_ outcome, wait time.Duration, _ error) {
	current, err := r.current(ctx, namespace)
	if err != nil {
		return unchanged, 0, err
	}
	owners := ownersOf(builders)
	hash := contentHash(content.Data, owners)
	if current != nil {
		if current.Labels[ManagedByLabel] != ManagedBy {
			return conflicting, 0, nil
		}
		if current.Annotations[ContentHashAnnotation] == hash && has(current, content.Data, owners) {
			return unchanged, 0, nil
		}
		if wait := r.pace.Wait(namespace, r.clock.Now(), inARow(current, content.Data, owners)); wait > 0 {
			return postponed, wait, nil
		}
	}
	apply := corev1apply.ConfigMap(ConfigMapName, namespace).
		WithLabels(map[string]string{ManagedByLabel: ManagedBy}).
		WithAnnotations(map[string]string{ContentHashAnnotation: hash}).
		WithData(content.Data)
	for _, owner := range owners {
		apply.WithOwnerReferences(metav1apply.OwnerReference().
			WithAPIVersion(v1alpha1.GroupVersion.String()).
			WithKind("NixBuilder").
			WithName(owner.name).
			WithUID(owner.uid))
	}
	if current != nil {
		apply.WithUID(current.UID)
	}
	if err := r.client.Apply(ctx, apply, client.FieldOwner(FieldOwner), client.ForceOwnership); err != nil {
		return unchanged, 0, fmt.Errorf("apply ConfigMap %s/%s: %w", namespace, ConfigMapName, err)
	}
	r.pace.Note(namespace, r.clock.Now())
	return written, 0, nil
}

// current returns the ConfigMap of a namespace, nil if there is none. That
// there is none is not taken from the cache, which may be late: applying would
// add our keys to what a user has just created.
func (r *Reconciler) current(ctx context.Context, namespace string) (*corev1.ConfigMap, error) {
	key := types.NamespacedName{Namespace: namespace, Name: ConfigMapName}
	for _, reader := range []client.Reader{r.client, r.uncached} {
		var found corev1.ConfigMap
		err := reader.Get(ctx, key, &found)
		if err == nil {
			return &found, nil
		}
		if !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("get ConfigMap %s: %w", key, err)
		}
	}
	return nil, nil
}

// withdraw deletes the ConfigMap of a namespace that has no NixBuilder left,
// if it is ours. The cluster's garbage collector would do the same by the
// owner references, and does while the operator is away; where there is no
// garbage collector nobody else would.
func (r *Reconciler) withdraw(ctx context.Context, namespace string) (outcome, error) {
	var found corev1.ConfigMap
	key := types.NamespacedName{Namespace: namespace, Name: ConfigMapName}
	if err := r.client.Get(ctx, key, &found); err != nil {
		return unchanged, client.IgnoreNotFound(err)
	}
	if found.Labels[ManagedByLabel] != ManagedBy || !found.DeletionTimestamp.IsZero() {
		return unchanged, nil
	}
	// As it was seen: its label may have been removed since.
	seen := client.Preconditions{UID: &found.UID, ResourceVersion: &found.ResourceVersion}
	if err := r.client.Delete(ctx, &found, seen); err != nil {
		return unchanged, client.IgnoreNotFound(err)
	}
	return written, nil
}

// owner is a NixBuilder as an owner reference.
type owner struct {
	name string
	uid  types.UID
}

func ownersOf(builders []v1alpha1.NixBuilder) []owner {
	owners := make([]owner, len(builders))
	for i := range builders {
		owners[i] = owner{builders[i].Name, builders[i].UID}
	}
	slices.SortFunc(owners, func(a, b owner) int { return strings.Compare(a.name, b.name) })
	return owners
}

// has reports whether the ConfigMap still is what the annotation says: someone
// may have edited it and left the annotation alone.
func has(current *corev1.ConfigMap, data map[string]string, owners []owner) bool {
	for key, text := range data {
		if current.Data[key] != text {
			return false
		}
	}
	return hasOwners(current, owners)
}

// contentHash is a hash of everything that is applied and can differ.
func contentHash(data map[string]string, owners []owner) string {
	hash := sha256.New()
	add := func(text string) {
		_ = binary.Write(hash, binary.BigEndian, uint64(len(text)))
		hash.Write([]byte(text))
	}
	for _, key := range slices.Sorted(maps.Keys(data)) {
		add(key)
		add(data[key])
	}
	for _, owner := range owners {
		add(owner.name)
		add(string(owner.uid))
	}
	return hex.EncodeToString(hash.Sum(nil))
}
