// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package controllers

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/controllers"
	"nixbuilder.io/nix-builder-operator/test/envtest"
)

const (
	// requestTimeout bounds one request to the API server.
	requestTimeout = 30 * time.Second
	// patience bounds what happens aside: in a manager, a probe, an event.
	patience     = time.Minute
	pollInterval = 100 * time.Millisecond
)

var (
	environment *envtest.Environment
	scheme      *runtime.Scheme
	// apiServer is the administrator's client. It has no cache.
	apiServer client.WithWatch
	// scratch is a directory that goes with the suite.
	scratch string
)

func TestControllers(t *testing.T) {
	ctrl.SetLogger(GinkgoLogr)
	scratch = t.TempDir()
	environment = envtest.ForTest(t, envtest.Options{AuditLog: filepath.Join(t.TempDir(), "audit.log")})
	var err error
	if scheme, err = controllers.Scheme(); err != nil {
		t.Fatal(err)
	}
	if apiServer, err = client.NewWithWatch(environment.Config(), client.Options{Scheme: scheme}); err != nil {
		t.Fatal(err)
	}
	RegisterFailHandler(Fail)
	SetDefaultEventuallyTimeout(patience)
	SetDefaultEventuallyPollingInterval(pollInterval)
	RunSpecs(t, "Controllers")
}

// withTimeout bounds a request.
func withTimeout(ctx context.Context) context.Context {
	bounded, cancel := context.WithTimeout(ctx, requestTimeout)
	DeferCleanup(cancel)
	return bounded
}

// newNamespace makes a namespace for one spec.
func newNamespace(ctx context.Context) string {
	GinkgoHelper()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "spec-"}}
	Expect(apiServer.Create(withTimeout(ctx), namespace)).To(Succeed())
	return namespace.Name
}

// create makes a builder with its status.
func create(ctx context.Context, builder *v1alpha1.NixBuilder) *v1alpha1.NixBuilder {
	GinkgoHelper()
	status := builder.Status
	Expect(apiServer.Create(withTimeout(ctx), builder)).To(Succeed())
	builder.Status = status
	Expect(apiServer.Status().Update(withTimeout(ctx), builder)).To(Succeed())
	return builder
}
