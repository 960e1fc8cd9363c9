// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package api

import (
	"context"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/envtest"
)

const requestTimeout = 30 * time.Second

var (
	config    *rest.Config
	apiServer client.Client
)

func TestAPI(t *testing.T) {
	environment := envtest.ForTest(t, envtest.Options{})
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	var err error
	config = environment.Config()
	if apiServer, err = environment.Client(scheme); err != nil {
		t.Fatal(err)
	}
	RegisterFailHandler(Fail)
	RunSpecs(t, "API")
}

func withTimeout(ctx SpecContext) context.Context {
	bounded, cancel := context.WithTimeout(ctx, requestTimeout)
	DeferCleanup(cancel)
	return bounded
}
