// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chart

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	nixbuilderv1alpha1 "nixbuilder.io/nix-builder-operator/api/v1alpha1"
)

const (
	// dispatcherLabel and dispatcherPort are how the PodMonitor finds the
	// dispatchers in other people's pods.
	dispatcherLabel = "nixbuilder.io/dispatcher"
	dispatcherPort  = "nix-dispatcher"

	machinesConfigMap = "nix-machines"
	keysDir           = "/etc/nix-keys/"
	clientDir         = "/nix-dispatch"
)

// readFile reads a file of the source tree.
func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// examples are the pods of docs/examples by file name.
func examples(t *testing.T) map[string]*corev1.Pod {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(root, "docs", "examples", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	pods := map[string]*corev1.Pod{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range decode(t, string(text)) {
			pod, ok := o.(*corev1.Pod)
			if !ok {
				t.Fatalf("%s has a %T, want pods only", path, o)
			}
			pods[filepath.Base(path)] = pod
		}
	}
	return pods
}

// What holds for every client pod.
func TestExamples(t *testing.T) {
	t.Parallel()
	pods := examples(t)
	if len(pods) < 2 {
		t.Fatalf("%d examples, want both ways to build", len(pods))
	}
	for name, pod := range pods {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wantWholeMounts(t, pod)
			for _, volume := range pod.Spec.Volumes {
				if m := volume.ConfigMap; m != nil && (m.Name != machinesConfigMap || m.Optional == nil || !*m.Optional || len(m.Items) > 0) {
					t.Errorf("volume %s = %+v, want the whole ConfigMap %s, optional", volume.Name, m, machinesConfigMap)
				}
			}
			if pod.Namespace != "" {
				t.Errorf("namespace %s: an example is applied to the reader's own", pod.Namespace)
			}
		})
	}
}

// wantWholeMounts checks that mounts are of whole volumes, which alone are
// updated, at paths that match what the machines file says of keys.
func wantWholeMounts(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	volumes := map[string]corev1.Volume{}
	for _, volume := range pod.Spec.Volumes {
		volumes[volume.Name] = volume
	}
	for _, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		for _, mount := range container.VolumeMounts {
			volume, found := volumes[mount.Name]
			switch {
			case !found:
				t.Errorf("container %s mounts %s, which is no volume", container.Name, mount.Name)
			case mount.SubPath != "" || mount.SubPathExpr != "":
				t.Errorf("container %s mounts a path within volume %s, which would never be updated", container.Name, mount.Name)
			case volume.Secret != nil && (mount.MountPath != keysDir+volume.Secret.SecretName || !mount.ReadOnly):
				t.Errorf("container %s mounts Secret %s at %s, want %s, read-only", container.Name, volume.Secret.SecretName, mount.MountPath, keysDir+volume.Secret.SecretName)
			case volume.ConfigMap != nil && (mount.MountPath != "/etc/nix-machines" || !mount.ReadOnly):
				t.Errorf("container %s mounts the ConfigMap at %s, want /etc/nix-machines, read-only", container.Name, mount.MountPath)
			}
		}
	}
}

func TestDispatchedExample(t *testing.T) {
	t.Parallel()
	pod := examples(t)["dispatched-pod.yaml"]
	if pod.Labels[dispatcherLabel] != "true" {
		t.Errorf("labels %v lack %s, which the PodMonitor selects", pod.Labels, dispatcherLabel)
	}
	sidecar, clients := pod.Spec.InitContainers[0], pod.Spec.Containers
	if sidecar.RestartPolicy == nil || *sidecar.RestartPolicy != corev1.ContainerRestartPolicyAlways {
		t.Error("the dispatcher is no sidecar: it lacks restartPolicy Always")
	}
	if sidecar.StartupProbe == nil || sidecar.StartupProbe.Exec == nil || sidecar.ReadinessProbe == nil || sidecar.ReadinessProbe.Exec == nil {
		t.Error("the dispatcher lacks an exec probe for startup or readiness")
	}
	if len(sidecar.Ports) != 1 || sidecar.Ports[0].Name != dispatcherPort {
		t.Errorf("ports %+v, want %s, which the PodMonitor scrapes", sidecar.Ports, dispatcherPort)
	}
	if address := fmt.Sprintf("--metrics-address=:%d", sidecar.Ports[0].ContainerPort); !slices.Contains(sidecar.Args, address) {
		t.Errorf("args %q lack %s: nothing listens on the port", sidecar.Args, address)
	}
	wantRestrictedContainer(t, pod.Spec, sidecar)
	if mount := mountAt(sidecar, clientDir); mount == nil || mount.ReadOnly {
		t.Errorf("the dispatcher mounts %+v at %s, want it writable", mount, clientDir)
	}
	for _, client := range clients {
		if mount := mountAt(client, clientDir); mount == nil || !mount.ReadOnly {
			t.Errorf("container %s mounts %+v at %s, want it read-only", client.Name, mount, clientDir)
		}
		if len(client.VolumeMounts) != 1 {
			t.Errorf("container %s mounts %+v: it needs the helper's volume only, least of all a key", client.Name, client.VolumeMounts)
		}
		if !strings.HasPrefix(env(client, "NIX_CONFIG"), "include "+clientDir+"/nix.conf\n") {
			t.Errorf("NIX_CONFIG of container %s = %q, want it to include the dispatcher's", client.Name, env(client, "NIX_CONFIG"))
		}
	}
}

func TestDirectExample(t *testing.T) {
	t.Parallel()
	pod := examples(t)["direct-pod.yaml"]
	client := pod.Spec.Containers[0]
	if got := env(client, "NIX_CONFIG"); !strings.Contains(got, "builders = @/etc/nix-machines/machines\n") {
		t.Errorf("NIX_CONFIG = %q, want it to name the machines file", got)
	}
	secrets := 0
	for _, volume := range pod.Spec.Volumes {
		if volume.Secret != nil {
			secrets++
			if mode := volume.Secret.DefaultMode; mode == nil || *mode != 0o400 {
				t.Errorf("mode of Secret %s = %v, want 0400: ssh refuses a key that others may read", volume.Secret.SecretName, mode)
			}
		}
	}
	if secrets == 0 {
		t.Error("the example has no key")
	}
}

func mountAt(c corev1.Container, path string) *corev1.VolumeMount {
	for i := range c.VolumeMounts {
		if c.VolumeMounts[i].MountPath == path {
			return &c.VolumeMounts[i]
		}
	}
	return nil
}

func env(c corev1.Container, name string) string {
	for _, variable := range c.Env {
		if variable.Name == name {
			return variable.Value
		}
	}
	return ""
}

// The image of the examples and of config/ is that of the chart's version.
func TestExamplesUseTheRelease(t *testing.T) {
	t.Parallel()
	want := get[*appsv1.Deployment](t, template(t, defaults), Release).Spec.Template.Spec.Containers[0].Image
	for name, pod := range examples(t) {
		for _, container := range pod.Spec.InitContainers {
			if container.Image != want {
				t.Errorf("%s uses image %s, the chart %s", name, container.Image, want)
			}
		}
	}
}

// Every manifest in the documentation is one that the API server knows.
func TestManifestsInDocumentation(t *testing.T) {
	t.Parallel()
	fence := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$")
	for _, name := range []string{"README.md", "docs/install.md", "docs/client-pods.md"} {
		for _, block := range fence.FindAllStringSubmatch(readFile(t, name), -1) {
			if !strings.HasPrefix(block[1], "apiVersion:") || strings.HasPrefix(block[1], "apiVersion: kustomize") {
				continue // values of the chart, part of a manifest, or not for the API server
			}
			for _, o := range decode(t, block[1]) {
				checkDocumented(t, name, o)
			}
		}
	}
}

func checkDocumented(t *testing.T, name string, o client.Object) {
	t.Helper()
	switch o := o.(type) {
	case *corev1.Pod:
		wantWholeMounts(t, o)
	case *nixbuilderv1alpha1.NixBuilder:
		if len(o.Spec.Endpoints) == 0 || len(o.Spec.Credentials.SecretRefs) == 0 {
			t.Errorf("%s: NixBuilder %s lacks endpoints or credentials", name, o.Name)
		}
	}
}
