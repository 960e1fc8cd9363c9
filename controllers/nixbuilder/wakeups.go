// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"context"
	"sync"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"nixbuilder.io/nix-builder-operator/internal/probe"
)

// Wakeups carries news from the prober to the controller. It is made before
// either of them. The zero value is ready for use.
type Wakeups struct {
	mu    sync.Mutex
	queue workqueue.TypedRateLimitingInterface[reconcile.Request]
}

// Notify asks for a pass over a builder. It never blocks, and several calls
// before that pass are as one. Before the controller runs it does nothing: the
// controller looks at every builder when it starts.
func (w *Wakeups) Notify(builder probe.Key) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.queue != nil {
		w.queue.Add(reconcile.Request{NamespacedName: types.NamespacedName{Namespace: builder.Namespace, Name: builder.Name}})
	}
}

// start takes over the controller's queue; it is a source of the controller.
func (w *Wakeups) start(_ context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = queue
	return nil
}
