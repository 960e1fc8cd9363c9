// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Services of nodes. Those of the control plane run on the first node only.
const (
	Etcd              = "etcd"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	Scheduler         = "kube-scheduler"
	DNS               = "coredns"
	Containerd        = "containerd"
	Kubelet           = "kubelet"
	Proxy             = "kube-proxy"
)

const containerdSocket = "/run/containerd/containerd.sock"

// controlPlane returns the arguments of the control plane's services.
func (c *Cluster) controlPlane() map[string][]string {
	file := func(name string) string { return filepath.Join(c.dir, name) }
	return map[string][]string{
		Etcd: {
			"--data-dir=" + file("etcd"), "--unsafe-no-fsync",
			"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
			"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
			"--initial-cluster=default=http://127.0.0.1:2380",
		},
		APIServer: {
			"--etcd-servers=http://127.0.0.1:2379",
			"--tls-cert-file=" + file("apiserver.crt"), "--tls-private-key-file=" + file("apiserver.key"),
			"--advertise-address=" + nodeAddress(1), "--secure-port=6443",
			"--service-cluster-ip-range=" + serviceNetwork,
			"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
			"--token-auth-file=" + file("tokens.csv"),
			"--service-account-issuer=https://kubernetes.default.svc." + domain,
			"--service-account-signing-key-file=" + file("service-accounts.key"),
			"--service-account-key-file=" + file("service-accounts.pub"),
			"--kubelet-preferred-address-types=InternalIP", "--allow-privileged=true",
		},
		ControllerManager: {
			"--kubeconfig=" + c.kubeconfigFile("system:kube-controller-manager"),
			"--service-account-private-key-file=" + file("service-accounts.key"), "--root-ca-file=" + file("ca.crt"),
			"--use-service-account-credentials", "--leader-elect=false", "--bind-address=127.0.0.1",
			// A node that died is noticed within seconds.
			"--node-monitor-period=1s", "--node-monitor-grace-period=20s",
		},
		Scheduler: {
			"--kubeconfig=" + c.kubeconfigFile("system:kube-scheduler"), "--leader-elect=false", "--bind-address=127.0.0.1",
		},
		DNS: {"-conf=" + file("Corefile")},
	}
}

// services returns the arguments of a node's own services.
func (n *Node) services() map[string][]string {
	return map[string][]string{
		Containerd: {"--config=" + filepath.Join(n.dir, "containerd.toml")},
		Kubelet: {
			"--config=" + filepath.Join(n.dir, "kubelet.yaml"),
			"--kubeconfig=" + n.cluster.kubeconfigFile(userOfNode(n.name)),
			"--hostname-override=" + n.name, "--node-ip=" + nodeAddress(n.number),
			"--cert-dir=" + filepath.Join(n.dir, "kubelet"), "--v=2",
		},
		Proxy: {
			"--kubeconfig=" + n.cluster.kubeconfigFile("system:kube-proxy"),
			"--hostname-override=" + n.name, "--cluster-cidr=" + podNetworks, "--proxy-mode=iptables",
			// These settings are the whole machine's.
			"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s",
		},
	}
}

// program returns the file of a service's program.
func (n *Node) program(service string) string {
	if service == Containerd {
		return filepath.Join(n.cluster.parts.Node, service)
	}
	return filepath.Join(n.cluster.parts.Kubernetes, service)
}

// StartService starts a service that is not running; its output is appended
// to its log. That it starts says nothing of whether it is ready.
func (n *Node) StartService(service string) error {
	arguments, found := n.services()[service]
	if n.number == 1 && !found {
		arguments, found = n.cluster.controlPlane()[service]
	}
	if !found {
		return fmt.Errorf("%s has no service %s", n.name, service)
	}
	words := []string{n.program(service)}
	words = append(words, arguments...)
	for i, word := range words {
		words[i] = "'" + word + "'"
	}
	script := fmt.Sprintf(`echo $$ >%[1]s/%[2]s.pid
export PATH=%[3]s:%[4]s:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
cd /
exec %[5]s >>%[1]s/%[2]s.log 2>&1
`, n.dir, service, n.cluster.parts.Node, n.cluster.parts.Kubernetes, strings.Join(words, " "))
	file := filepath.Join(n.dir, service+".sh")
	if err := os.WriteFile(file, []byte(script), 0o644); err != nil {
		return err
	}
	fifo, err := os.OpenFile(filepath.Join(n.dir, "start"), os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("start %s on %s: %w", service, n.name, err)
	}
	defer fifo.Close()
	if _, err := fmt.Fprintln(fifo, file); err != nil {
		return fmt.Errorf("start %s on %s: %w", service, n.name, err)
	}
	return nil
}

// SignalService sends a signal to a service's process: SIGKILL for a crash,
// SIGSTOP for one that hangs.
func (n *Node) SignalService(service string, signal syscall.Signal) error {
	text, err := os.ReadFile(filepath.Join(n.dir, service+".pid"))
	if err != nil {
		return fmt.Errorf("signal %s on %s: %w", service, n.name, err)
	}
	inner, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("signal %s on %s: %w", service, n.name, err)
	}
	pid, err := n.outerPID(inner)
	if err != nil {
		return fmt.Errorf("signal %s on %s: %w", service, n.name, err)
	}
	return syscall.Kill(pid, signal)
}

// Log returns what a service has written so far, all starts together.
func (n *Node) Log(service string) string {
	text, err := os.ReadFile(filepath.Join(n.dir, service+".log"))
	if err != nil {
		return err.Error()
	}
	return string(text)
}
