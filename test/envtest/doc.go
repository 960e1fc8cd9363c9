// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package envtest starts a real API server (etcd and kube-apiserver) with the
// project's CRDs, for tests and for the demo. There are no controllers, no
// nodes and no service accounts other than those that a test makes.
//
// A test calls [ForTest]; a program calls [Start] and [Environment.Stop]. The
// servers end with the process that started them, however it ends. Starting takes
// about five seconds, so share one environment between the tests of a package and
// separate them by namespace.
package envtest
