// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package v1alpha1 holds the API types of the group nixbuilder.io, version
// v1alpha1: what users write about their Nix builders and what the operator
// reports about them.
//
// The types are declarative: defaults, limits and rules are markers, from which
// the CustomResourceDefinition is generated. The package imports nothing but
// k8s.io/api and k8s.io/apimachinery, so that clients can use it cheaply.
//
// +kubebuilder:object:generate=true
// +groupName=nixbuilder.io
package v1alpha1
