// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Command envtest is etcd, kube-apiserver and kubectl in one binary: the
// control plane for tests and for the demo. Symlinks of those names select
// the program. Linking them together shares most of their code and build time.
//
// A server that is started with ENVTEST_PARENT=<pid> in its environment ends
// itself once its parent process is another one: a test binary that panics,
// times out or is killed leaves no servers behind.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	_ "k8s.io/component-base/logs/json/register"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	switch name := filepath.Base(os.Args[0]); name {
	case "etcd":
		followParent()
		etcdmain.Main(os.Args)
	case "kube-apiserver":
		followParent()
		exit(apiserver.NewAPIServerCommand())
	case "kubectl":
		logs.GlogSetter(cmd.GetLogVerbosity(os.Args))
		if err := cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()); err != nil {
			util.CheckErr(err)
		}
	default:
		fmt.Fprintf(os.Stderr, "%s: call this binary as etcd, kube-apiserver or kubectl (by symlink)\n", name)
		os.Exit(2)
	}
}

func exit(command *cobra.Command) { os.Exit(cli.Run(command)) }

// parentCheckInterval bounds how long a server outlives its parent.
const parentCheckInterval = 300 * time.Millisecond

func followParent() {
	parent, err := strconv.Atoi(os.Getenv("ENVTEST_PARENT"))
	if err != nil {
		return
	}
	go func() {
		for os.Getppid() == parent {
			time.Sleep(parentCheckInterval)
		}
		// As asked to end by anybody else; the data is thrown away, so one that
		// does not end soon may be cut short.
		_ = syscall.Kill(os.Getpid(), syscall.SIGTERM)
		time.Sleep(2 * time.Second)
		os.Exit(1)
	}()
}
