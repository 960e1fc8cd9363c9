// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Command kubernetes is all of Kubernetes in one binary: etcd, the programs of
// the control plane and of a node, cluster DNS and kubectl. Symlinks of their
// names select the program. Tests and the demo need the API server alone,
// test/cluster a whole cluster; linking them together shares most of their
// code and build time.
//
// A server that is started with ENVTEST_PARENT=<pid> in its environment ends
// itself once its parent process is another one: a test binary that panics,
// times out or is killed leaves no servers behind.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	switch name := filepath.Base(os.Args[0]); name {
	case "etcd":
		followParent()
		etcdmain.Main(os.Args)
	case "kube-apiserver":
		followParent()
		exit(apiserver.NewAPIServerCommand())
	case "kube-controller-manager":
		exit(controllermanager.NewControllerManagerCommand())
	case "kube-scheduler":
		exit(scheduler.NewSchedulerCommand())
	case "kubelet":
		exit(kubelet.NewKubeletCommand(context.Background()))
	case "kube-proxy":
		exit(proxy.NewProxyCommand())
	case "coredns":
		// The order in which requests pass the plugins.
		dnsserver.Directives = []string{"bind", "ready", "errors", "cache", "hosts", "kubernetes"}
		coremain.Run()
	case "kubectl":
		logs.GlogSetter(cmd.GetLogVerbosity(os.Args))
		if err := cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()); err != nil {
			util.CheckErr(err)
		}
	default:
		fmt.Fprintf(os.Stderr, "%s: call this binary by a symlink with the name of one of its programs\n", name)
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
