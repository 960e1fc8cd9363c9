// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
)

// Reasons of events.
const (
	// ReasonConfigMapConflict: a ConfigMap of our name is not ours.
	ReasonConfigMapConflict = "ConfigMapConflict"
	// ReasonConfigMapTooLarge: the builders do not fit into a ConfigMap.
	ReasonConfigMapTooLarge = "ConfigMapTooLarge"
)

// actionPublish is what the operator was about when it noticed.
const actionPublish = "Publish"

const conflictNote = `ConfigMap nix-machines exists and is not the operator's: it lacks the label ` + ManagedByLabel + `=` + ManagedBy +
	`. It is left alone, and the builders of this namespace are not published. Rename or delete it, or give it the label to hand it over.`

const tooLargeNote = `The builders of this namespace need more room than a ConfigMap has (900 KiB). ` +
	`ConfigMap nix-machines keeps its last content. Move some NixBuilders to another namespace.`

// warn tells every builder of a namespace about a problem, once for as long as
// the problem lasts.
func (r *Reconciler) warn(ctx context.Context, builders []v1alpha1.NixBuilder, problem string) {
	namespace := builders[0].Namespace
	r.metrics.problem(namespace, problem)
	reason, note := ReasonConfigMapConflict, conflictNote
	if problem == problemTooLarge {
		reason, note = ReasonConfigMapTooLarge, tooLargeNote
	}
	for i := range builders {
		builder := &builders[i]
		if !r.warnings.isNews(namespace, problem, builder.UID) {
			continue
		}
		ctrl.LoggerFrom(ctx).Info("Published nothing", "builder", builder.Name, "reason", reason)
		about := &corev1.ObjectReference{
			APIVersion:      v1alpha1.GroupVersion.String(),
			Kind:            "NixBuilder",
			Namespace:       namespace,
			Name:            builder.Name,
			UID:             builder.UID,
			ResourceVersion: builder.ResourceVersion,
		}
		r.recorder.Eventf(about, nil, corev1.EventTypeWarning, reason, actionPublish, "%s", note)
	}
}

// warnings remembers who was told what. After a restart everybody is told again:
// the problem lasts, and events do not.
type warnings struct {
	mu   sync.Mutex
	told map[string]warning // by namespace
}

type warning struct {
	problem  string
	builders map[types.UID]bool
}

// isNews reports whether the builder was not told of the problem yet, and
// remembers that it is now. Another problem in between makes it news again.
func (w *warnings) isNews(namespace, problem string, builder types.UID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	last := w.told[namespace]
	if last.problem != problem {
		last = warning{problem: problem, builders: make(map[types.UID]bool)}
		if w.told == nil {
			w.told = make(map[string]warning)
		}
		w.told[namespace] = last
	}
	if last.builders[builder] {
		return false
	}
	last.builders[builder] = true
	return true
}

// clear makes every problem of the namespace news again.
func (w *warnings) clear(namespace string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.told, namespace)
}
