// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package envtest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// leaverVariable makes the test binary start an environment in the directory
// it names and leave without stopping it.
const leaverVariable = "ENVTEST_LEAVER_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(leaverVariable); dir != "" {
		_, err := Start(Options{CRDs: []string{}, Dir: dir})
		if err != nil {
			panic(err)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// widget is a small CRD, so that these tests need none of the project's.
const widget = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.test.nixbuilder.io}
spec:
  group: test.nixbuilder.io
  names: {kind: Widget, plural: widgets}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object}}
`

func TestEnvironment(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	crd := filepath.Join(dir, "widget.yaml")
	if err := os.WriteFile(crd, []byte(widget), 0o600); err != nil {
		t.Fatal(err)
	}
	environment := ForTest(t, Options{CRDs: []string{crd}, AuditLog: filepath.Join(dir, "audit.log")})
	before := time.Now()
	admin, err := environment.Client(scheme.Scheme)
	if err != nil {
		t.Fatal(err)
	}
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "one"}}
	if err := admin.Create(t.Context(), object); err != nil {
		t.Fatal(err)
	}

	t.Run("a user may do what RBAC grants", func(t *testing.T) {
		config, err := environment.User("nobody")
		if err != nil {
			t.Fatal(err)
		}
		nobody, err := client.New(config, client.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := nobody.Delete(t.Context(), object.DeepCopy()); !apierrors.IsForbidden(err) {
			t.Errorf("delete by a user without rights: %v, want Forbidden", err)
		}
	})
	t.Run("kubectl works with the written kubeconfig", func(t *testing.T) {
		kubeconfig := filepath.Join(dir, "kubeconfig")
		if err := environment.WriteKubeconfig(kubeconfig); err != nil {
			t.Fatal(err)
		}
		command := exec.CommandContext(t.Context(), environment.Kubectl(), "--kubeconfig", kubeconfig, "get", "crd,configmap", "-n", "default", "-o", "name")
		output, err := command.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, output)
		}
		for _, want := range []string{"customresourcedefinition.apiextensions.k8s.io/widgets.test.nixbuilder.io", "configmap/one"} {
			if !strings.Contains(string(output), want) {
				t.Errorf("kubectl printed %q, want %s in it", output, want)
			}
		}
	})
	t.Run("the audit log has the writes", func(t *testing.T) {
		writes, err := environment.Writes()
		if err != nil {
			t.Fatal(err)
		}
		counts := CountWrites(writes, before, time.Now())
		for key, want := range map[WriteKey]int{
			{User: "admin", Resource: "configmaps"}:  1,
			{User: "nobody", Resource: "configmaps"}: 1,
		} {
			if got := counts[key]; got != want {
				t.Errorf("%d writes of %v, want %d (all: %v)", got, key, want, counts)
			}
		}
	})
}

func TestServersEndWithTheirParent(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "environment")
	leave(t, dir)
	// Cleans up when the test fails.
	t.Cleanup(func() { _ = stopServers(dir) })
	waitForEnd(t, dir)
}

// leave runs a process that starts an environment and exits.
func leave(t *testing.T, dir string) {
	t.Helper()
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), executable)
	command.Env = append(os.Environ(), leaverVariable+"="+dir)
	var output bytes.Buffer
	command.Stdout, command.Stderr = &output, &output
	if err := command.Run(); err != nil {
		t.Fatalf("start an environment in another process: %v\n%s", err, output.String())
	}
}

// waitForEnd returns when no server of a directory runs any more.
func waitForEnd(t *testing.T, dir string) {
	t.Helper()
	deadline := time.Now().Add(stopTimeout)
	for {
		pids, err := serversOf(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(pids) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("servers %v are still running", pids)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func TestAssetsMissing(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("KUBEBUILDER_ASSETS", dir)
	_, err := Start(Options{})
	if want := "no etcd in " + dir + ": run `make envtest`"; err == nil || err.Error() != want {
		t.Errorf("Start: %v, want %q", err, want)
	}
}
