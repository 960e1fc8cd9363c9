// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chart

import (
	"bufio"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	nixbuilderv1alpha1 "nixbuilder.io/nix-builder-operator/api/v1alpha1"
)

// monitoringGroup is the one whose types are not among our dependencies.
const monitoringGroup = "monitoring.coreos.com/v1"

// objects are what a tool has rendered, in its order.
type objects []client.Object

// decode reads a stream of manifests. Unknown and doubled fields are errors,
// and so are kinds other than Kubernetes', ours and those of the Prometheus operator.
func decode(t *testing.T, stream string) objects {
	t.Helper()
	decoder := strictDecoder(t)
	reader := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(stream)))
	var all objects
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if onlyComments(document) {
			continue
		}
		if strings.Contains(string(document), "apiVersion: "+monitoringGroup+"\n") {
			object := &unstructured.Unstructured{}
			if err := yaml.UnmarshalStrict(document, &object.Object); err != nil {
				t.Fatalf("%v in\n%s", err, document)
			}
			all = append(all, object)
			continue
		}
		object, _, err := decoder.Decode(document, nil, nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		all = append(all, object.(client.Object))
	}
}

func strictDecoder(t *testing.T) runtime.Decoder {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientgoscheme.AddToScheme, apiextensionsv1.AddToScheme, nixbuilderv1alpha1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
}

func onlyComments(document []byte) bool {
	for line := range strings.Lines(string(document)) {
		line = strings.TrimSpace(line)
		if line != "" && line != "---" && !strings.HasPrefix(line, "#") {
			return false
		}
	}
	return true
}

// id is "Kind/namespace/name", with an empty namespace for cluster-scoped
// objects.
func id(o client.Object) string {
	return o.GetObjectKind().GroupVersionKind().Kind + "/" + o.GetNamespace() + "/" + o.GetName()
}

func (all objects) ids() []string {
	var ids []string
	for _, o := range all {
		ids = append(ids, id(o))
	}
	slices.Sort(ids)
	return ids
}

// get returns the one object of type T with that name.
func get[T client.Object](t *testing.T, all objects, name string) T {
	t.Helper()
	var found []T
	for _, o := range all {
		if typed, ok := o.(T); ok && o.GetName() == name {
			found = append(found, typed)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d objects of type %T named %s among\n%s", len(found), *new(T), name, strings.Join(all.ids(), "\n"))
	}
	return found[0]
}

// list returns all objects of type T.
func list[T client.Object](all objects) []T {
	var found []T
	for _, o := range all {
		if typed, ok := o.(T); ok {
			found = append(found, typed)
		}
	}
	return found
}

// fields returns an object as JSON has it, without status, which manifests
// leave empty.
func fields(t *testing.T, o client.Object) map[string]any {
	t.Helper()
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		t.Fatal(err)
	}
	delete(m, "status")
	return m
}
