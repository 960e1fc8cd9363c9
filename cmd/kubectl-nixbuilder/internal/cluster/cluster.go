// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package cluster reads and changes NixBuilders by way of the user's kubeconfig, and
// says in words what the API server refuses.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/controllers/machines"
	"nixbuilder.io/nix-builder-operator/internal/version"
)

// requestTimeout bounds one request to the API server.
const requestTimeout = 30 * time.Second

// FieldManager is the name under which the API server records changes.
const FieldManager = "kubectl-nixbuilder"

// Options say which cluster and whose eyes. Empty fields are those of kubectl: the
// kubeconfig's current context and its namespace.
type Options struct {
	Kubeconfig, Context, Namespace string
	// As and AsGroups are whom to impersonate.
	As       string
	AsGroups []string
}

// Client is a connection to a cluster. Its errors are for people.
type Client struct {
	api  client.Client
	host string
	// Namespace is the one of the command line, else of the kubeconfig.
	Namespace string
}

// Connect reads the kubeconfig. It does not talk to the cluster yet.
func Connect(o Options) (*Client, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.Kubeconfig
	overrides := &clientcmd.ConfigOverrides{CurrentContext: o.Context}
	overrides.Context.Namespace = o.Namespace
	overrides.AuthInfo.Impersonate, overrides.AuthInfo.ImpersonateGroups = o.As, o.AsGroups
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides)
	config, err := loader.ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, errors.New("there is no kubeconfig: name one with --kubeconfig or KUBECONFIG")
	}
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig: %w", err)
	}
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig: %w", err)
	}
	return New(config, namespace)
}

// New returns a client of the cluster that config leads to.
func New(config *rest.Config, namespace string) (*Client, error) {
	config = rest.CopyConfig(config)
	config.UserAgent = FieldManager + "/" + version.String()
	config.Timeout = requestTimeout
	config.WarningHandler = rest.NoWarnings{}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, coordinationv1.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	api, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, explain(err, config.Host, "connect to the API server")
	}
	return &Client{api: api, host: config.Host, Namespace: namespace}, nil
}

// List returns the NixBuilders of a namespace, or of all where it is empty.
func (c *Client) List(ctx context.Context, namespace string) ([]v1alpha1.NixBuilder, error) {
	var list v1alpha1.NixBuilderList
	if err := c.api.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return nil, explain(err, c.host, "list NixBuilders "+in(namespace))
	}
	return list.Items, nil
}

// Get returns one NixBuilder.
func (c *Client) Get(ctx context.Context, key types.NamespacedName) (*v1alpha1.NixBuilder, error) {
	var builder v1alpha1.NixBuilder
	if err := c.api.Get(ctx, key, &builder); err != nil {
		return nil, explain(err, c.host, fmt.Sprintf("get NixBuilder %s %s", key.Name, in(key.Namespace)))
	}
	return &builder, nil
}

// Patch changes a NixBuilder. Its error is a [*ConflictError] where the object is not
// what the patch expects.
func (c *Client) Patch(ctx context.Context, key types.NamespacedName, kind types.PatchType, patch []byte) error {
	builder := &v1alpha1.NixBuilder{}
	builder.Namespace, builder.Name = key.Namespace, key.Name
	err := c.api.Patch(ctx, builder, client.RawPatch(kind, patch), client.FieldOwner(FieldManager))
	if err != nil {
		return explain(err, c.host, fmt.Sprintf("change NixBuilder %s %s", key.Name, in(key.Namespace)))
	}
	return nil
}

// MachinesFile returns what is published to a namespace, or false where nothing is.
func (c *Client) MachinesFile(ctx context.Context, namespace string) (map[string]string, bool, error) {
	var published corev1.ConfigMap
	err := c.api.Get(ctx, types.NamespacedName{Namespace: namespace, Name: machines.ConfigMapName}, &published)
	if client.IgnoreNotFound(err) != nil {
		return nil, false, explain(err, c.host, "get ConfigMap "+machines.ConfigMapName+" "+in(namespace))
	}
	return published.Data, err == nil, nil
}

func in(namespace string) string {
	if namespace == "" {
		return "of all namespaces"
	}
	return "in namespace " + namespace
}
