// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package envtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	controlplane "sigs.k8s.io/controller-runtime/pkg/envtest"
)

const (
	// startTimeout is for each server; 3 s is usual, but not on a busy machine.
	startTimeout = 2 * time.Minute
	stopTimeout  = 30 * time.Second
)

// Options say what environment to start. The zero value is an API server with
// the project's CRDs.
type Options struct {
	// CRDs are files or directories of CRDs; nil means those of the source tree
	// (config/crd/bases), empty means none.
	CRDs []string
	// Dir keeps the servers' files; it is made if it does not exist and removed
	// by Stop. Empty means a new temporary directory.
	Dir string
	// AuditLog is the file that the API server describes every request in, for
	// [ReadWrites]; empty means no audit log.
	AuditLog string
	// Output takes what the servers print; nil means nobody does.
	Output *os.File
}

// Environment is a running API server.
type Environment struct {
	plane    *controlplane.Environment
	dir      string
	auditLog string
}

// ForTest starts an environment that stops when tb and its subtests are done.
func ForTest(tb testing.TB, options Options) *Environment {
	tb.Helper()
	environment, err := Start(options)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := environment.Stop(); err != nil {
			tb.Error(err)
		}
	})
	return environment
}

// Start returns once the API server answers and its CRDs are established.
// Nothing is left behind when it fails.
func Start(options Options) (_ *Environment, err error) {
	assets, err := Assets()
	if err != nil {
		return nil, err
	}
	if options.CRDs == nil {
		root, err := repository()
		if err != nil {
			return nil, err
		}
		options.CRDs = []string{filepath.Join(root, "config", "crd", "bases")}
	}
	if options.Dir, err = makeDir(options.Dir); err != nil {
		return nil, err
	}
	plane, err := newPlane(assets, options)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(options.Dir))
	}
	environment := &Environment{plane: plane, dir: options.Dir, auditLog: options.AuditLog}
	if _, err := plane.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start the API server: %w", err), environment.Stop())
	}
	return environment, nil
}

func makeDir(dir string) (string, error) {
	if dir == "" {
		return os.MkdirTemp("", "nix-builder-operator-envtest-")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o700)
}

func newPlane(assets string, options Options) (*controlplane.Environment, error) {
	plane := &controlplane.Environment{
		UseExistingCluster:       ptr.To(false),
		CRDDirectoryPaths:        options.CRDs,
		ErrorIfCRDPathMissing:    true,
		ControlPlaneStartTimeout: startTimeout,
		ControlPlaneStopTimeout:  stopTimeout,
	}
	plane.ControlPlane.KubectlPath = filepath.Join(assets, "kubectl")

	// Directories of our own: an argument that names one identifies the servers
	// of this environment to stopServers.
	dataDir, certDir := filepath.Join(options.Dir, "etcd"), filepath.Join(options.Dir, "kube-apiserver")
	for _, dir := range []string{dataDir, certDir} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, fmt.Errorf("directory of another environment? %w", err)
		}
	}
	etcd, err := launcher(assets, "etcd", options)
	if err != nil {
		return nil, err
	}
	plane.ControlPlane.Etcd = &controlplane.Etcd{Path: etcd, DataDir: dataDir}

	server := plane.ControlPlane.GetAPIServer()
	server.CertDir = certDir
	if server.Path, err = launcher(assets, "kube-apiserver", options); err != nil {
		return nil, err
	}
	if options.Output != nil {
		server.Out, server.Err = options.Output, options.Output
		plane.ControlPlane.Etcd.Out, plane.ControlPlane.Etcd.Err = options.Output, options.Output
	}
	if options.AuditLog != "" {
		policy := filepath.Join(options.Dir, "audit-policy.yaml")
		if err := os.WriteFile(policy, []byte(auditPolicy), 0o600); err != nil {
			return nil, err
		}
		server.Configure().
			Set("audit-policy-file", policy).
			Set("audit-log-path", options.AuditLog)
	}
	return plane, nil
}

// launcher returns a program that starts a server and names this process as
// the one to end with. It spares the environment of this process, in which
// several API servers of different kinds may start.
func launcher(assets, name string, options Options) (string, error) {
	path := filepath.Join(options.Dir, name+".sh")
	script := fmt.Sprintf("#!/bin/sh\nENVTEST_PARENT=%d exec '%s' \"$@\"\n", os.Getpid(), filepath.Join(assets, name))
	return path, os.WriteFile(path, []byte(script), 0o700)
}

// Config returns a copy of the administrator's client configuration, without
// client-side throttling to speak of.
func (e *Environment) Config() *rest.Config { return rest.CopyConfig(e.plane.Config) }

// Client returns a new uncached client of the administrator.
func (e *Environment) Client(scheme *runtime.Scheme) (client.Client, error) {
	return client.New(e.plane.Config, client.Options{Scheme: scheme})
}

// Kubectl returns the path of a kubectl of the server's version.
func (e *Environment) Kubectl() string { return e.plane.ControlPlane.KubectlPath }

// WriteKubeconfig writes the administrator's kubeconfig, readable only by the
// owner of this process.
func (e *Environment) WriteKubeconfig(path string) error {
	if err := os.WriteFile(path, e.plane.KubeConfig, 0o600); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	return nil
}

// User returns the client configuration of a user of that name, who may do
// what RBAC grants the name and groups. Like the operator's own it does not limit how
// often the user asks. The API server's own names work too:
// "system:serviceaccount:<namespace>:<name>" with group
// "system:serviceaccounts" is what a pod of that service account is.
func (e *Environment) User(name string, groups ...string) (*rest.Config, error) {
	user, err := e.plane.AddUser(controlplane.User{Name: name, Groups: groups}, nil)
	if err != nil {
		return nil, fmt.Errorf("make user %s: %w", name, err)
	}
	config := user.Config()
	config.QPS = -1
	return config, nil
}

// Stop ends the servers and removes their files. The audit log stays.
func (e *Environment) Stop() error {
	if err := e.plane.Stop(); err != nil {
		return errors.Join(fmt.Errorf("stop the API server: %w", err), stopServers(e.dir))
	}
	return os.RemoveAll(e.dir)
}
