// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package cluster

import (
	"fmt"
	"path/filepath"
)

// kubeconfig is the file with which a user reaches the API server.
func (c *Cluster) kubeconfig(user string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: cluster
  cluster: {server: %q, certificate-authority: %q}
users:
- name: user
  user: {token: %q}
contexts:
- name: cluster
  context: {cluster: cluster, user: user}
current-context: cluster
`, serverURL(), filepath.Join(c.dir, "ca.crt"), c.credentials.tokens[user])
}

// corefile configures cluster DNS. Builders are in a file that it reads anew
// whenever that changes.
func (c *Cluster) corefile() string {
	return fmt.Sprintf(`.:53 {
  bind %s
  errors
  ready %s:8181
  hosts %s %s {
    ttl 5
    reload 1s
  }
  kubernetes %s in-addr.arpa {
    kubeconfig %s cluster
    pods insecure
    ttl 5
  }
  cache 5
}
`, nodeAddress(1), nodeAddress(1), c.hostsFile(), builderDomain, domain, c.kubeconfigFile("coredns"))
}

func (n *Node) containerdConfig() string {
	return fmt.Sprintf(`version = 3
root = "/var/lib/containerd"
state = "/run/containerd"

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = %q

[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  # Without CAP_SYS_RESOURCE nobody may lower this score, and it does not matter here.
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = [%q]
  conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  BinaryName = %q
  SystemdCgroup = false
`, pauseImage, n.cluster.parts.Node, filepath.Join(n.cluster.parts.Node, "runc"))
}

func (n *Node) networkConfig() string {
	return fmt.Sprintf(`{
  "cniVersion": "1.0.0",
  "name": "pods",
  "plugins": [
    {
      "type": "bridge", "bridge": "pods", "isGateway": true, "ipMasq": false, "hairpinMode": true,
      "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": %q, "rangeStart": %q}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`, podNetwork(n.number), firstPod(n.number))
}

func (n *Node) kubeletConfig() string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://%s
failCgroupV1: false
cgroupDriver: cgroupfs
failSwapOn: false
address: 0.0.0.0
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
podCIDR: %s
clusterDomain: %s
clusterDNS: [%s]
resolvConf: ""
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 100Mi, nodefs.available: "1%%", imagefs.available: "1%%"}
# Tests wait for what the kubelet notices late; these are for machines with a hundred pods.
syncFrequency: 1m
nodeStatusUpdateFrequency: 5s
`, containerdSocket, podNetwork(n.number), domain, dnsServiceAddress)
}

// baseObjects are what every cluster has besides what Kubernetes makes
// itself: the Service of cluster DNS, which runs beside the API server.
func baseObjects() string {
	return fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec:
  clusterIP: %[1]s
  ports:
  - {name: dns, port: 53, protocol: UDP}
  - {name: dns-tcp, port: 53, protocol: TCP}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: kube-dns
  namespace: kube-system
  labels: {kubernetes.io/service-name: kube-dns, endpointslice.kubernetes.io/managed-by: test}
addressType: IPv4
endpoints:
- addresses: [%[2]s]
  conditions: {ready: true}
ports:
- {name: dns, port: 53, protocol: UDP}
- {name: dns-tcp, port: 53, protocol: TCP}
`, dnsServiceAddress, nodeAddress(1))
}
