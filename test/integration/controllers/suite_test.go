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
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/controllers"
	"nixbuilder.io/nix-builder-operator/test/envtest"
)

const (
	// eventuallyTimeout bounds what happens aside: a manager, a probe, an event.
	eventuallyTimeout = time.Minute
	pollInterval      = 100 * time.Millisecond
)

var (
	environment *envtest.Environment
	config      *rest.Config
	apiServer   client.Client
)

func TestControllers(t *testing.T) {
	ctrl.SetLogger(GinkgoLogr)
	environment = envtest.ForTest(t, envtest.Options{AuditLog: filepath.Join(t.TempDir(), "audit.log")})
	config = environment.Config()
	scheme, err := controllers.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	if apiServer, err = environment.Client(scheme); err != nil {
		t.Fatal(err)
	}
	RegisterFailHandler(Fail)
	SetDefaultEventuallyTimeout(eventuallyTimeout)
	SetDefaultEventuallyPollingInterval(pollInterval)
	RunSpecs(t, "Controllers")
}

// newNamespace makes a namespace for one spec.
func newNamespace(ctx context.Context) string {
	GinkgoHelper()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "spec-"}}
	Expect(apiServer.Create(ctx, namespace)).To(Succeed())
	return namespace.Name
}
