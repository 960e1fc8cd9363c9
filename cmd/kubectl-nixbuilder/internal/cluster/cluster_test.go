// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package cluster

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

func TestExplain(t *testing.T) {
	t.Parallel()
	resource := schema.GroupResource{Group: "nixbuilder.io", Resource: "nixbuilders"}
	refused := &net.OpError{Op: "dial", Err: errors.New("connection refused")}
	tests := map[string]struct {
		err          error
		want         string
		wantConflict bool
	}{
		"no such type":        {&meta.NoResourceMatchError{}, "do it: the cluster at https://api does not know NixBuilders; install the operator", false},
		"no login":            {apierrors.NewUnauthorized("who?"), "does not know you; log in anew", false},
		"forbidden":           {apierrors.NewForbidden(resource, "linux", errors.New("no")), "do it: you may not; ask for a role", false},
		"not found":           {apierrors.NewNotFound(resource, "linux"), "do it: there is none of that name", false},
		"conflict":            {apierrors.NewConflict(resource, "linux", errors.New("x")), "somebody else has changed it meanwhile", true},
		"a test did not hold": {apierrors.NewGenericServerResponse(422, "patch", resource, "linux", "testing path failed", 0, false), "somebody else has changed it meanwhile", true},
		"invalid": {&apierrors.StatusError{ErrStatus: metav1.Status{Reason: metav1.StatusReasonInvalid, Code: 422, Message: "spec.cordon.reason: must be one line",
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Field: "spec.cordon.reason"}}}}}, "do it: spec.cordon.reason: must be one line", false},
		"nobody there":   {refused, "do it: the API server at https://api cannot be reached", false},
		"something else": {errors.New("x"), "do it: x", false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := explain(tc.err, "https://api", "do it")
			var conflict *ConflictError
			if !strings.Contains(got.Error(), tc.want) || errors.As(got, &conflict) != tc.wantConflict {
				t.Errorf("%v, want %s, a conflict: %t", got, tc.want, tc.wantConflict)
			}
		})
	}
}

func TestOperator(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
	lease := func(namespace, holder string, age time.Duration) client.Object {
		l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: leaseName}}
		l.Spec.RenewTime = &metav1.MicroTime{Time: now.Add(-age)}
		if holder != "" {
			l.Spec.HolderIdentity = ptr.To(holder)
		}
		return l
	}
	tests := map[string]struct {
		leases []client.Object
		err    error
		want   string
	}{
		"none":             {nil, nil, "no operator has ever led in this cluster"},
		"one leads":        {[]client.Object{lease("ops", "pod-1", 3*time.Second)}, nil, "an operator leads in namespace ops (pod-1) but does not answer"},
		"nobody leads":     {[]client.Object{lease("ops", "pod-1", 3*time.Minute)}, nil, "nobody has renewed the Lease nix-builder-operator in namespace ops for 3m0s"},
		"it was given up":  {[]client.Object{lease("ops", "", time.Second)}, nil, "no operator leads"},
		"the freshest one": {[]client.Object{lease("a", "old", time.Hour), lease("b", "new", time.Second)}, nil, "in namespace b (new)"},
		"forbidden":        {nil, errors.New("forbidden"), "You may not look at its Lease"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			scheme := runtime.NewScheme()
			if err := coordinationv1.AddToScheme(scheme); err != nil {
				t.Fatal(err)
			}
			byName := func(o client.Object) []string { return []string{o.GetName()} }
			api := fake.NewClientBuilder().WithScheme(scheme).WithObjects(tc.leases...).
				WithIndex(&coordinationv1.Lease{}, "metadata.name", byName).
				WithInterceptorFuncs(interceptor.Funcs{List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
					if tc.err != nil {
						return tc.err
					}
					return c.List(ctx, list, opts...)
				}}).Build()
			if got := (&Client{api: api}).Operator(t.Context(), now); !strings.Contains(got, tc.want) {
				t.Errorf("Operator = %s, want %s", got, tc.want)
			}
		})
	}
}

const kubeconfig = `apiVersion: v1
kind: Config
current-context: here
contexts:
  - {name: here, context: {cluster: c, user: u, namespace: ci}}
  - {name: there, context: {cluster: c, user: u}}
clusters:
  - {name: c, cluster: {server: "https://127.0.0.1:1"}}
users:
  - {name: u, user: {token: secret}}
`

func TestConnect(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, []byte(kubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		options Options
		want    string // namespace
		wantErr string
	}{
		"the context's namespace": {Options{Kubeconfig: file}, "ci", ""},
		"the flag's":              {Options{Kubeconfig: file, Namespace: "nightly"}, "nightly", ""},
		"another context":         {Options{Kubeconfig: file, Context: "there"}, "default", ""},
		"no such context":         {Options{Kubeconfig: file, Context: "x"}, "", `context "x" does not exist`},
		"no such file":            {Options{Kubeconfig: file + "x"}, "", "read the kubeconfig"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := Connect(tc.options)
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Errorf("error %v, want %s", err, tc.wantErr)
				}
				return
			}
			if err != nil || c.Namespace != tc.want {
				t.Fatalf("%+v, %v", c, err)
			}
			if _, err := c.List(t.Context(), c.Namespace); err == nil || !strings.Contains(err.Error(), "list NixBuilders in namespace "+tc.want+": the API server at https://127.0.0.1:1 cannot be reached") {
				t.Errorf("error %v", err)
			}
		})
	}
}
