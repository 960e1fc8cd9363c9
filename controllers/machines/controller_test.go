// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	clocktesting "k8s.io/utils/clock/testing"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
)

// stage is a Reconciler over an API server of the imagination. What the real
// one does with an apply is tested against a real one.
type stage struct {
	*Reconciler
	clock  *clocktesting.FakePassiveClock
	events chan string
	// applies and deletes count requests; applyError answers the next ones.
	applies, deletes int
	applyError       error
}

func newStage(t *testing.T, objects ...client.Object) *stage {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	metrics, err := NewMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{clock: clocktesting.NewFakePassiveClock(now), events: make(chan string, 100)}
	c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).WithInterceptorFuncs(interceptor.Funcs{
		Apply: func(ctx context.Context, c client.WithWatch, obj runtime.ApplyConfiguration, opts ...client.ApplyOption) error {
			s.applies++
			if s.applyError != nil {
				return s.applyError
			}
			return c.Apply(ctx, obj, opts...)
		},
		Delete: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.DeleteOption) error {
			s.deletes++
			return c.Delete(ctx, obj, opts...)
		},
	}).Build()
	s.Reconciler = NewReconciler(Options{
		Client: c, Uncached: c, Recorder: &events.FakeRecorder{Events: s.events}, Metrics: metrics, Clock: s.clock,
	})
	return s
}

func (s *stage) reconcile(t *testing.T) ctrl.Result {
	t.Helper()
	result, err := s.Reconcile(t.Context(), RequestFor(metav1.NamespaceDefault))
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func (s *stage) configMap(t *testing.T) *corev1.ConfigMap {
	t.Helper()
	var found corev1.ConfigMap
	err := s.client.Get(t.Context(), RequestFor(metav1.NamespaceDefault).NamespacedName, &found)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return &found
}

// told gives the events since the last call.
func (s *stage) told() []string {
	var list []string
	for {
		select {
		case e := <-s.events:
			list = append(list, e)
		default:
			return list
		}
	}
}

func (s *stage) metric(t *testing.T, problem string) float64 {
	t.Helper()
	return testutil.ToFloat64(s.metrics.problems.WithLabelValues(metav1.NamespaceDefault, problem))
}

// object is the builder as it would be stored.
func object(w *wrapper) *v1alpha1.NixBuilder {
	b := accept(w).Obj()
	b.UID = types.UID("uid-" + b.Name)
	return b
}

func TestReconcilePublishesOnce(t *testing.T) {
	t.Parallel()
	s := newStage(t, object(one("x", healthy(""))), object(one("y", down("", time.Minute))))
	s.reconcile(t)
	got := s.configMap(t)
	if got.Labels[ManagedByLabel] != ManagedBy || got.Annotations[ContentHashAnnotation] == "" {
		t.Errorf("labels %v and annotations %v lack ours", got.Labels, got.Annotations)
	}
	for _, key := range []string{KeyMachines, KeyBuilders, KeyKnownHosts, KeySSHConfig, KeyNixConf} {
		if got.Data[key] == "" {
			t.Errorf("key %s is missing", key)
		}
	}
	var owners []string
	for _, reference := range got.OwnerReferences {
		owners = append(owners, reference.Kind+"/"+reference.Name)
		if reference.Controller != nil || reference.BlockOwnerDeletion != nil {
			t.Errorf("owner reference %v claims more than to be one", reference)
		}
	}
	if list := strings.Join(owners, " "); list != "NixBuilder/x NixBuilder/y" {
		t.Errorf("owners are %q, want both builders", list)
	}
	if len(got.Finalizers) != 0 {
		t.Errorf("finalizers %v, want none", got.Finalizers)
	}
	for range 10 {
		s.reconcile(t)
	}
	if s.applies != 1 {
		t.Errorf("%d writes for one content", s.applies)
	}
	if told := s.told(); len(told) != 0 {
		t.Errorf("events %q, want none", told)
	}
	if lines := testutil.ToFloat64(s.metrics.lines.WithLabelValues(metav1.NamespaceDefault)); lines != 1 {
		t.Errorf("metric of lines is %v, want 1", lines)
	}
}

func TestReconcileRestoresWhatOthersEdit(t *testing.T) {
	t.Parallel()
	s := newStage(t, object(one("x", healthy(""))))
	s.reconcile(t)
	edited := s.configMap(t)
	want := edited.Data[KeyMachines]
	edited.Data[KeyMachines] = "ssh-ng://evil\n"
	if err := s.client.Update(t.Context(), edited); err != nil {
		t.Fatal(err)
	}
	s.reconcile(t)
	if got := s.configMap(t).Data[KeyMachines]; got != want {
		t.Errorf("machines = %q, want %q again", got, want)
	}
}

func TestReconcileWritesForAnotherOwner(t *testing.T) {
	t.Parallel()
	rejected := one("y", healthy("")).Condition(v1alpha1.ConditionAccepted, metav1.ConditionFalse, "InvalidKey")
	s := newStage(t, object(one("x", healthy(""))))
	s.reconcile(t)
	if err := s.client.Create(t.Context(), object(rejected)); err != nil {
		t.Fatal(err)
	}
	s.reconcile(t)
	if owners := s.configMap(t).OwnerReferences; len(owners) != 2 {
		t.Errorf("owners %v, want both builders: with the one gone, the other needs it", owners)
	}
}

func usersConfigMap() *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: ConfigMapName, UID: "theirs"},
		Data:       map[string]string{"mine": "yes"},
	}
}

func TestReconcileLeavesUsersConfigMapAlone(t *testing.T) {
	t.Parallel()
	s := newStage(t, object(one("x", healthy(""))), usersConfigMap())
	before := s.configMap(t)
	for range 3 {
		s.reconcile(t)
	}
	if after := s.configMap(t); after.ResourceVersion != before.ResourceVersion || s.applies != 0 {
		t.Errorf("the user's ConfigMap was written: %v", after)
	}
	told := s.told()
	if len(told) != 1 || !strings.HasPrefix(told[0], "Warning ConfigMapConflict ") {
		t.Errorf("events %q, want one ConfigMapConflict", told)
	}
	if s.metric(t, problemConflict) != 1 {
		t.Error("the metric does not show the conflict")
	}
	// A builder that comes later is told too; the first one not again.
	if err := s.client.Create(t.Context(), object(one("y", healthy("")))); err != nil {
		t.Fatal(err)
	}
	s.reconcile(t)
	if told := s.told(); len(told) != 1 {
		t.Errorf("events %q, want one for the new builder", told)
	}
	// Once it is gone, ours takes its place; another conflict is news again.
	if err := s.client.Delete(t.Context(), before); err != nil {
		t.Fatal(err)
	}
	s.reconcile(t)
	if s.metric(t, problemConflict) != 0 || s.configMap(t).Labels[ManagedByLabel] != ManagedBy {
		t.Error("the conflict is over, but nothing was published")
	}
	ours := s.configMap(t)
	ours.Labels = nil
	if err := s.client.Update(t.Context(), ours); err != nil {
		t.Fatal(err)
	}
	s.reconcile(t)
	if told := s.told(); len(told) != 2 {
		t.Errorf("events %q, want one for each builder", told)
	}
}

// The cache may not know yet of a ConfigMap that a user has just made.
func TestReconcileLooksPastTheCacheBeforeItCreates(t *testing.T) {
	t.Parallel()
	s := newStage(t, object(one("x", healthy(""))))
	s.uncached = fake.NewClientBuilder().WithObjects(usersConfigMap()).Build()
	s.reconcile(t)
	if s.applies != 0 {
		t.Error("a ConfigMap was written though a user had made one")
	}
	if told := s.told(); len(told) != 1 {
		t.Errorf("events %q, want one ConfigMapConflict", told)
	}
}

func TestReconcileKeepsLastContentWhenTooLarge(t *testing.T) {
	t.Parallel()
	s := newStage(t, object(one("x", healthy(""))))
	s.reconcile(t)
	before := s.configMap(t)
	large := object(bulky("b", 60))
	if err := s.client.Create(t.Context(), large); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		s.reconcile(t)
	}
	if after := s.configMap(t); after.ResourceVersion != before.ResourceVersion {
		t.Error("the last content did not stay")
	}
	told := s.told()
	if len(told) != 2 || !strings.HasPrefix(told[0], "Warning ConfigMapTooLarge ") {
		t.Errorf("events %q, want one ConfigMapTooLarge for each builder", told)
	}
	if s.metric(t, problemTooLarge) != 1 {
		t.Error("the metric does not show the problem")
	}
	large.Spec.Endpoints = large.Spec.Endpoints[:10]
	if err := s.client.Update(t.Context(), large); err != nil {
		t.Fatal(err)
	}
	s.reconcile(t)
	if s.metric(t, problemTooLarge) != 0 || s.applies != 2 {
		t.Error("the content fits again, but was not published")
	}
}

func TestReconcileDeletesWithTheLastBuilder(t *testing.T) {
	t.Parallel()
	builder := object(one("x", healthy("")))
	s := newStage(t, builder)
	s.reconcile(t)
	if err := s.client.Delete(t.Context(), builder); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s.reconcile(t)
	}
	if left := s.configMap(t); left != nil || s.deletes != 2 {
		t.Errorf("ConfigMap %v after %d deletions, want it deleted once besides the builder", left, s.deletes)
	}
}

func TestReconcileDoesNotDeleteUsersConfigMap(t *testing.T) {
	t.Parallel()
	s := newStage(t, usersConfigMap())
	s.reconcile(t)
	if s.configMap(t) == nil || s.deletes != 0 {
		t.Error("the user's ConfigMap was deleted")
	}
}

func TestReconcileWithdrawsFromBuildersInDeletion(t *testing.T) {
	t.Parallel()
	builder := object(one("x", healthy("")))
	builder.Finalizers = []string{"example.com/hold"}
	s := newStage(t, builder)
	s.reconcile(t)
	if err := s.client.Delete(t.Context(), builder); err != nil {
		t.Fatal(err)
	}
	s.reconcile(t)
	if s.configMap(t) != nil {
		t.Error("a builder that is being deleted keeps the ConfigMap")
	}
}

func TestReconcileComesBackWhenACordonEnds(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		until time.Duration
		want  time.Duration
	}{
		"soon":         {time.Minute, time.Minute},
		"far away":     {100 * time.Hour, longestWait},
		"in no time":   {time.Microsecond, time.Millisecond},
		"it has ended": {-time.Second, 0},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			builder := object(one("x", healthy("")))
			// Stored times have no fractions, so the clock gets them.
			until := now.Add(time.Hour * 1000)
			builder.Spec.Cordon = &v1alpha1.Cordon{Reason: "r", Until: &metav1.Time{Time: until}}
			if err := s.client.Create(t.Context(), builder); err != nil {
				t.Fatal(err)
			}
			s.clock.SetTime(until.Add(-tc.until))
			if got := s.reconcile(t).RequeueAfter; got != tc.want {
				t.Errorf("RequeueAfter = %v, want %v", got, tc.want)
			}
			s.clock.SetTime(until)
			s.reconcile(t)
			if text := s.configMap(t).Data[KeyMachines]; !strings.HasPrefix(text, "ssh-ng://nix@x.example ") {
				t.Errorf("machines = %q after the cordon's end", text)
			}
		})
	}
}

func TestReconcileSortsOutErrors(t *testing.T) {
	t.Parallel()
	resource := schema.GroupResource{Resource: "configmaps"}
	terminating := apierrors.NewForbidden(resource, ConfigMapName, errors.New("being terminated"))
	terminating.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: corev1.NamespaceTerminatingCause}}
	tests := map[string]struct {
		err         error
		wantErr     bool
		wantRequeue time.Duration
	}{
		"the namespace is terminating": {terminating, false, 0},
		"the namespace is gone":        {apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, "x"), false, 0},
		"someone was faster":           {apierrors.NewConflict(resource, ConfigMapName, errors.New("uid")), false, time.Second},
		"not allowed":                  {apierrors.NewForbidden(resource, ConfigMapName, errors.New("no")), true, 0},
		"no answer":                    {context.DeadlineExceeded, true, 0},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, object(one("x", healthy(""))))
			s.applyError = tc.err
			result, err := s.Reconcile(t.Context(), RequestFor(metav1.NamespaceDefault))
			if (err != nil) != tc.wantErr || result.RequeueAfter != tc.wantRequeue {
				t.Errorf("Reconcile: %v, %v; want an error: %v, requeue after %v", result, err, tc.wantErr, tc.wantRequeue)
			}
		})
	}
}
