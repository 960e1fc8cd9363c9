// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Command envtest is etcd, kube-apiserver and kubectl in one binary: the
// control plane for tests and for the demo. Symlinks of those names select
// the program. Linking them together shares most of their code and build time.
package main

import (
	"fmt"
	"os"
	"path/filepath"

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
		etcdmain.Main(os.Args)
	case "kube-apiserver":
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
