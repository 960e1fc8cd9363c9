// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/controllers/internal/pace"
)

const (
	// reconciliationTimeout bounds one pass: a few requests to the API server.
	reconciliationTimeout = 30 * time.Second
	// settle is how long a change waits for those that belong to it: when
	// probes begin, every endpoint of a namespace changes within seconds.
	settle = 250 * time.Millisecond
	// Failed passes are repeated after firstRetry, and after up to lastRetry if
	// they go on failing.
	firstRetry = 250 * time.Millisecond
	lastRetry  = time.Minute
	// longestWait bounds how long the end of a cordon is waited for at once,
	// since clocks may be set.
	longestWait = time.Hour
)

// Options are what a Reconciler works with.
type Options struct {
	// Client reads NixBuilders and ConfigMaps (from a cache, usually; see
	// CacheOptions) and writes ConfigMaps.
	Client client.Client
	// Uncached reads ConfigMaps past any cache, before one is created.
	Uncached client.Reader
	Recorder events.EventRecorder
	Metrics  *Metrics
	// Clock tells when cordons end; nil is the real one.
	Clock clock.PassiveClock
}

// Reconciler publishes NixBuilders in ConfigMaps. Its requests are named after
// ConfigMaps, one in each namespace.
type Reconciler struct {
	client   client.Client
	uncached client.Reader
	recorder events.EventRecorder
	metrics  *Metrics
	clock    clock.PassiveClock
	warnings warnings
	pace     *pace.Pace
}

// NewReconciler returns a Reconciler. It works without a manager, too.
func NewReconciler(options Options) *Reconciler {
	r := &Reconciler{
		client:   options.Client,
		uncached: options.Uncached,
		recorder: options.Recorder,
		metrics:  options.Metrics,
		clock:    options.Clock,
		pace:     pace.New(leisure),
	}
	if r.clock == nil {
		r.clock = clock.RealClock{}
	}
	return r
}

// CacheOptions say what of ConfigMaps a manager's cache has to hold: those of
// our name. All others would only take memory, and the right to read them.
func CacheOptions() cache.ByObject {
	return cache.ByObject{Field: fields.OneTermEqualSelector("metadata.name", ConfigMapName)}
}

// +kubebuilder:rbac:groups=nixbuilder.io,resources=nixbuilders,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=configmaps,resourceNames=nix-machines,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// Register runs the Reconciler in a manager, on the leader alone.
func (r *Reconciler) Register(mgr ctrl.Manager) error {
	err := ctrl.NewControllerManagedBy(mgr).
		Named("machines").
		Watches(&v1alpha1.NixBuilder{}, enqueueNamespace()).
		Watches(&corev1.ConfigMap{}, enqueueNamespace()).
		WithOptions(controller.Options{
			MaxConcurrentReconciles: 2,
			ReconciliationTimeout:   reconciliationTimeout,
			RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](firstRetry, lastRetry),
		}).
		Complete(r)
	if err != nil {
		return fmt.Errorf("set up the machines controller: %w", err)
	}
	return nil
}

// enqueueNamespace asks, a moment later, for a pass over the namespace of an
// object.
func enqueueNamespace() handler.EventHandler {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	enqueue := func(object client.Object, q queue) {
		if _, ok := object.(*corev1.ConfigMap); ok && object.GetName() != ConfigMapName {
			return
		}
		q.AddAfter(RequestFor(object.GetNamespace()), settle)
	}
	return handler.Funcs{
		CreateFunc: func(_ context.Context, e event.CreateEvent, q queue) { enqueue(e.Object, q) },
		UpdateFunc: func(_ context.Context, e event.UpdateEvent, q queue) { enqueue(e.ObjectNew, q) },
		DeleteFunc: func(_ context.Context, e event.DeleteEvent, q queue) { enqueue(e.Object, q) },
	}
}

// RequestFor is the request for a namespace.
func RequestFor(namespace string) reconcile.Request {
	return reconcile.Request{NamespacedName: client.ObjectKey{Namespace: namespace, Name: ConfigMapName}}
}

// Reconcile makes one pass over one namespace.
func (r *Reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	namespace := request.Namespace
	var list v1alpha1.NixBuilderList
	if err := r.client.List(ctx, &list, client.InNamespace(namespace), client.UnsafeDisableDeepCopy); err != nil {
		return ctrl.Result{}, fmt.Errorf("list NixBuilders: %w", err)
	}
	builders := present(list.Items)
	if len(builders) == 0 {
		r.metrics.forget(namespace)
		r.warnings.clear(namespace)
		r.pace.Forget(namespace)
		result, err := r.withdraw(ctx, namespace)
		if result == written {
			ctrl.LoggerFrom(ctx).Info("Deleted ConfigMap, since the namespace has no NixBuilder any more")
		}
		return r.settled(ctx, err)
	}
	now := r.clock.Now()
	content, err := Desired(builders, now)
	if errors.Is(err, ErrTooLarge) {
		r.warn(ctx, builders, problemTooLarge)
		return ctrl.Result{}, nil
	}
	if err != nil {
		return ctrl.Result{}, fmt.Errorf("render builders: %w", err)
	}
	result, postponement, err := r.publish(ctx, namespace, builders, content)
	if err != nil {
		return r.settled(ctx, err)
	}
	switch result {
	case conflicting:
		r.warn(ctx, builders, problemConflict)
		return ctrl.Result{}, nil
	case postponed:
		return ctrl.Result{RequeueAfter: postponement}, nil
	}
	r.warnings.clear(namespace)
	r.metrics.problem(namespace, "")
	r.metrics.published(namespace, content, result)
	if result == written {
		ctrl.LoggerFrom(ctx).Info("Published builders", "lines", content.Lines, "bytes", content.Size())
		for _, reason := range content.Unlisted {
			ctrl.LoggerFrom(ctx).Error(reason, "Left an endpoint out of the machines file; dispatchers have it")
		}
	}
	return ctrl.Result{RequeueAfter: wait(content.Expires, now)}, nil
}

// settled sorts out errors of writing that are the course of things.
func (r *Reconciler) settled(ctx context.Context, err error) (ctrl.Result, error) {
	switch {
	case err == nil:
		return ctrl.Result{}, nil
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause), apierrors.IsNotFound(err):
		// The namespace is going or gone, and the NixBuilders with it.
		ctrl.LoggerFrom(ctx).V(1).Info("Published nothing in a namespace that is being deleted")
		return ctrl.Result{}, nil
	case apierrors.IsConflict(err):
		// Someone was faster, and the cache will know in a moment.
		return ctrl.Result{RequeueAfter: time.Second}, nil
	}
	return ctrl.Result{}, err
}

// present drops builders that are being deleted.
func present(all []v1alpha1.NixBuilder) []v1alpha1.NixBuilder {
	var left []v1alpha1.NixBuilder
	for i := range all {
		if all[i].DeletionTimestamp.IsZero() {
			left = append(left, all[i])
		}
	}
	return left
}

// wait is how long to wait for a time; 0 is not at all.
func wait(until, now time.Time) time.Duration {
	if until.IsZero() {
		return 0
	}
	return min(max(until.Sub(now), time.Millisecond), longestWait)
}
