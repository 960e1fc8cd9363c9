// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/controllers/internal/pace"
	"nixbuilder.io/nix-builder-operator/internal/probe"
)

const (
	// reconciliationTimeout bounds one pass: a few requests to the API server.
	reconciliationTimeout = 30 * time.Second
	// conflictDelay is how long a pass waits for the cache after it turned out
	// to have worked on an old copy.
	conflictDelay = time.Second
	// Failed passes are repeated after firstRetry, and after up to lastRetry if
	// they go on failing.
	firstRetry = 250 * time.Millisecond
	lastRetry  = time.Minute
	// statusInterval is the least time between two writes of a status, on average,
	// and statusInARow how many may follow each other without a pause. Machines
	// change their state seldom, but one that flaps does all the time.
	statusInterval = 4 * time.Second
	statusInARow   = 10
)

// Options are what a Reconciler works with.
type Options struct {
	// Client reads NixBuilders (from a cache, usually) and writes their status.
	Client client.Client
	// Secrets reads Secrets past any cache: a cache would need the right to list
	// them all.
	Secrets client.Reader
	Prober  Prober
	// Wakeups is told of by the prober. Nil in tests that call Reconcile.
	Wakeups  *Wakeups
	Recorder events.EventRecorder
	Metrics  *Metrics
	// Clock tells the time; nil is the real one.
	Clock clock.PassiveClock
	// Jitter returns numbers from [0, 1); nil is a random source.
	Jitter func() float64
}

// Reconciler keeps the status of NixBuilders true.
type Reconciler struct {
	client   client.Client
	secrets  client.Reader
	prober   Prober
	wakeups  *Wakeups
	recorder events.EventRecorder
	metrics  *Metrics
	clock    clock.PassiveClock
	jitter   func() float64
	refusals refusals
	pace     *pace.Pace
}

// NewReconciler returns a Reconciler. It works without a manager, too.
func NewReconciler(options Options) *Reconciler {
	r := &Reconciler{
		client:   options.Client,
		secrets:  options.Secrets,
		prober:   options.Prober,
		wakeups:  options.Wakeups,
		recorder: options.Recorder,
		metrics:  options.Metrics,
		clock:    options.Clock,
		jitter:   options.Jitter,
		pace:     pace.New(statusInterval),
	}
	if r.wakeups == nil {
		r.wakeups = &Wakeups{}
	}
	if r.clock == nil {
		r.clock = clock.RealClock{}
	}
	if r.jitter == nil {
		r.jitter = rand.Float64
	}
	return r
}

// +kubebuilder:rbac:groups=nixbuilder.io,resources=nixbuilders,verbs=get;list;watch
// +kubebuilder:rbac:groups=nixbuilder.io,resources=nixbuilders/status,verbs=patch
// +kubebuilder:rbac:groups="",resources=secrets,verbs=get
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// Register runs the Reconciler in a manager, on the leader alone. Its own writes
// of status come back to it too: a pass over the new copy finds nothing to do,
// or repairs what one over an old copy has decided.
func (r *Reconciler) Register(mgr ctrl.Manager) error {
	err := ctrl.NewControllerManagedBy(mgr).
		Named("nixbuilder").
		For(&v1alpha1.NixBuilder{}).
		Watches(&v1alpha1.NixBuilder{}, r.wakeRelated()).
		WatchesRawSource(source.Func(r.wakeups.start)).
		WithOptions(controller.Options{
			MaxConcurrentReconciles: 4,
			ReconciliationTimeout:   reconciliationTimeout,
			RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](firstRetry, lastRetry),
		}).
		Complete(r)
	if err != nil {
		return fmt.Errorf("set up the nixbuilder controller: %w", err)
	}
	return nil
}

// wakeRelated wakes other builders of the namespace that have a machine in
// common with one that changes: which of them is accepted may change with it.
func (r *Reconciler) wakeRelated() handler.EventHandler {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, q queue) { r.enqueueRelated(ctx, q, e.Object) },
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q queue) {
			r.enqueueRelated(ctx, q, e.ObjectOld, e.ObjectNew)
		},
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, q queue) { r.enqueueRelated(ctx, q, e.Object) },
	}
}

func (r *Reconciler) enqueueRelated(ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request], changed ...client.Object) {
	var list v1alpha1.NixBuilderList
	if err := r.client.List(ctx, &list, client.InNamespace(changed[0].GetNamespace()), client.UnsafeDisableDeepCopy); err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "Could not list NixBuilders to compare their machines; each does so itself within a minute")
		return
	}
	for i := range list.Items {
		other := &list.Items[i]
		if other.Name == changed[0].GetName() {
			continue
		}
		for _, object := range changed {
			if builder, ok := object.(*v1alpha1.NixBuilder); ok && related(builder, other) {
				queue.Add(reconcile.Request{NamespacedName: client.ObjectKeyFromObject(other)})
				break
			}
		}
	}
}

// Reconcile makes one pass over one NixBuilder.
func (r *Reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	key := probe.Key{Namespace: request.Namespace, Name: request.Name}
	builder := &v1alpha1.NixBuilder{}
	err := r.client.Get(ctx, request.NamespacedName, builder)
	if apierrors.IsNotFound(err) || err == nil && !builder.DeletionTimestamp.IsZero() {
		r.prober.Forget(key)
		r.metrics.forget(request.NamespacedName)
		r.refusals.forget(key)
		r.pace.Forget(key.String())
		return ctrl.Result{}, nil
	}
	if err != nil {
		return ctrl.Result{}, fmt.Errorf("read NixBuilder: %w", err)
	}
	s := &scope{builder: builder, key: key, now: r.clock.Now()}
	for _, phase := range []func(context.Context, *scope) error{
		r.accept,
		r.readCredentials,
		r.probeTargets,
		r.requestProbe,
		r.store,
	} {
		if err := phase(ctx, s); err != nil {
			return ctrl.Result{}, err
		}
	}
	s.wakeAtCordonEnd()
	return ctrl.Result{RequeueAfter: s.requeueAfter}, nil
}

// store writes the status where it differs from what was read, and only if
// nobody wrote in between, and tells what changed.
func (r *Reconciler) store(ctx context.Context, s *scope) error {
	status := s.status()
	r.metrics.observe(types.NamespacedName{Namespace: s.key.Namespace, Name: s.key.Name}, &status, s.snapshots)
	if equality.Semantic.DeepEqual(s.builder.Status, status) {
		return nil
	}
	if wait := r.pace.Wait(s.key.String(), s.now, statusInARow); wait > 0 && !s.awaited(&status) {
		s.wakeIn(wait)
		return nil
	}
	changed := s.builder.DeepCopy()
	// The answer is decoded into it, and parts of status are those of the cache.
	changed.Status = *status.DeepCopy()
	patch := client.MergeFromWithOptions(s.builder, client.MergeFromWithOptimisticLock{})
	err := r.client.Status().Patch(ctx, changed, patch)
	switch {
	case apierrors.IsConflict(err):
		// The cache was behind; with its next update comes the next pass.
		s.wakeIn(conflictDelay)
		return nil
	case apierrors.IsNotFound(err):
		return nil
	case apierrors.IsInvalid(err):
		return reconcile.TerminalError(fmt.Errorf("write status, which breaks the rules of the CRD that is installed: %w", err))
	case err != nil:
		return fmt.Errorf("write status: %w", err)
	}
	r.pace.Note(s.key.String(), s.now)
	if status.LastProbe != s.builder.Status.LastProbe {
		r.metrics.requestAnswered()
	}
	for _, t := range s.transitions(&status) {
		ctrl.LoggerFrom(ctx).Info("NixBuilder changed", "endpoint", t.endpoint, "reason", t.reason, "note", t.note)
		t.emit(r.recorder, changed)
	}
	return nil
}

// awaited reports whether somebody waits for a status: it is the first about a spec,
// or the answer to a request.
func (s *scope) awaited(status *v1alpha1.NixBuilderStatus) bool {
	return s.builder.Generation != s.builder.Status.ObservedGeneration || status.LastProbe != s.builder.Status.LastProbe
}
