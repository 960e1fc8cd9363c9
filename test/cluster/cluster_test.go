// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// root is the source tree, seen from this package.
const root = "../.."

// testTimeout bounds one test, on a loaded machine.
const testTimeout = 4 * time.Minute

// withTimeout bounds what a test waits for.
func withTimeout(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

// newCluster starts a cluster for one test.
func newCluster(t *testing.T) *Cluster {
	t.Helper()
	parts, err := FindParts(root)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Start(withTimeout(t), Options{Parts: parts, Progress: func(line string) { t.Log(line) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// kubectl runs kubectl, which has to work.
func kubectl(ctx context.Context, t *testing.T, c *Cluster, args ...string) string {
	t.Helper()
	text, err := c.Kubectl(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// eventually tries until it works, as long as ctx lasts.
func eventually(ctx context.Context, t *testing.T, try func() error) {
	t.Helper()
	for err := try(); err != nil; err = try() {
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// runPod runs a script in a pod with Nix on the node and returns what it
// printed. The pod has the key of the builders at /key/ssh-privatekey.
func runPod(ctx context.Context, t *testing.T, c *Cluster, name, node, script string) string {
	t.Helper()
	manifest := fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  restartPolicy: Never
  nodeName: %s
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: %s
    command: [bash, -c, %q]
    volumeMounts: [{name: nix, mountPath: /nix}, {name: key, mountPath: /key}]
  volumes:
  - {name: nix, emptyDir: {}}
  - {name: key, secret: {secretName: key, defaultMode: 0400}}
`, name, node, ClientImage{SSH: true}.Name(), script)
	if err := c.Apply(ctx, manifest); err != nil {
		t.Fatal(err)
	}
	phase := ""
	eventually(ctx, t, func() error {
		phase = kubectl(ctx, t, c, "get", "pod", name, "-o", "jsonpath={.status.phase}")
		if phase != "Succeeded" && phase != "Failed" {
			return fmt.Errorf("pod %s is %s:\n%s", name, phase, kubectl(ctx, t, c, "describe", "pod", name))
		}
		return nil
	})
	text := kubectl(ctx, t, c, "logs", name)
	if phase != "Succeeded" {
		t.Fatalf("pod %s has failed:\n%s", name, text)
	}
	return text
}

// One cluster for all that a cluster has to be able to do: starting one takes
// longer than most of it.
func TestCluster(t *testing.T) {
	c := newCluster(t)
	ctx := withTimeout(t)
	if err := c.AddClientImage(ctx, ClientImage{SSH: true}); err != nil {
		t.Fatal(err)
	}
	var builders []*Builder
	for name, version := range map[string]nixlab.Version{"old": nixlab.Nix28, "new": nixlab.Newest} {
		builder, err := c.StartBuilder(ctx, nixlab.BuilderOptions{Name: name, Version: version})
		if err != nil {
			t.Fatal(err)
		}
		builders = append(builders, builder)
	}
	lab, err := c.Lab()
	if err != nil {
		t.Fatal(err)
	}
	kubectl(ctx, t, c, "create", "secret", "generic", "key", "--from-file=ssh-privatekey="+lab.ClientKeyFile())

	t.Run("a pod builds on builders by address and by name", func(t *testing.T) {
		for _, b := range builders {
			for _, host := range []string{b.IP(), b.Host()} {
				name := strings.ReplaceAll(host, ".", "-")
				line := strings.Replace(b.MachinesLineAt(host+":22", 1), lab.ClientKeyFile(), "/key/ssh-privatekey", 1)
				text := runPod(ctx, t, c, name, "node1", "nix-build '<nixpkgs>' -A hello --max-jobs 0 --builders '"+line+"' && cat result 2>&1")
				if !strings.Contains(text, "building '/nix/store/") || !strings.HasSuffix(text, "\nHello, world!\n") {
					t.Errorf("on %s:\n%s", host, text)
				}
			}
		}
	})
	t.Run("nodes join, and Services reach across", func(t *testing.T) { testNodes(ctx, t, c) })
	t.Run("the API server comes back", func(t *testing.T) { testRestart(ctx, t, c) })
	t.Run("a node is lost", func(t *testing.T) {
		c.Node(2).Kill()
		eventually(ctx, t, func() error {
			if status := kubectl(ctx, t, c, "get", "node", "node2", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`); status != "Unknown" {
				return fmt.Errorf("node2 is still ready: %s", status)
			}
			return nil
		})
	})
}

// testNodes has a pod on each of two nodes, and one talk to the other by the
// name of a Service.
func testNodes(ctx context.Context, t *testing.T, c *Cluster) {
	began := time.Now()
	if _, err := c.AddNode(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("node2 was ready after %v", time.Since(began))
	if err := c.Apply(ctx, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: %s
    command: [bash, -c, "ssh-keygen -q -t ed25519 -N '' -f /tmp/key && mkdir -p /run/sshd && exec /usr/sbin/sshd -D -f /dev/null -h /tmp/key"]
---
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  selector: {app: server}
  ports: [{port: 2222, targetPort: 22}]
`, ClientImage{SSH: true}.Name())); err != nil {
		t.Fatal(err)
	}
	for _, node := range []string{"node1", "node2"} {
		text := runPod(ctx, t, c, "client-on-"+node, node,
			`for i in $(seq 100); do exec 3<>/dev/tcp/server/2222 && break; sleep 0.2; done 2>/dev/null; head -c 8 <&3`)
		if text != "SSH-2.0-" {
			t.Errorf("the server said %q to a pod on %s", text, node)
		}
	}
	if text := kubectl(ctx, t, c, "exec", "server", "--", "cat", "/etc/hostname"); text != "server\n" {
		t.Errorf("kubectl exec says %q", text)
	}
}

// testRestart kills the API server and starts it again.
func testRestart(ctx context.Context, t *testing.T, c *Cluster) {
	node := c.Node(1)
	if err := node.SignalService(APIServer, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(ctx, t, func() error {
		connection, err := node.Dial(ctx, "tcp", nodeAddress(1)+":6443")
		if err == nil {
			connection.Close()
			return fmt.Errorf("the API server still answers")
		}
		return nil
	})
	if err := node.StartService(APIServer); err != nil {
		t.Fatal(err)
	}
	eventually(ctx, t, func() error {
		_, err := c.Kubectl(ctx, "get", "pod", "server")
		return err
	})
}

func TestUnknownService(t *testing.T) {
	t.Parallel()
	n := &Node{cluster: &Cluster{}, number: 2, name: "node2"}
	if err := n.StartService(APIServer); err == nil || err.Error() != "node2 has no service kube-apiserver" {
		t.Errorf("got %v", err)
	}
	if err := n.SignalService(Kubelet, 0); err == nil {
		t.Error("a service that never ran could be signalled")
	}
}

// Every program that is missing is a line of its own, with its package.
func TestMissingPrograms(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	err := Prerequisites()
	if err == nil {
		t.Fatal("nothing is missing")
	}
	for _, want := range []string{"a cluster needs ip (package iproute2)", "a cluster needs iptables (package iptables)", "a cluster needs nsenter (package util-linux)"} {
		if !strings.Contains("\n"+err.Error()+"\n", "\n"+want+"\n") {
			t.Errorf("there is no line %q:\n%v", want, err)
		}
	}
}

// Parts that are missing are named with what to do about it.
func TestMissingParts(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	_, err := FindParts(root)
	if err == nil || !strings.HasSuffix(err.Error(), ": run `make cluster-parts`") {
		t.Errorf("got %v", err)
	}
}

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDirectory); dir != "" {
		holdUntilKilled(filepath.Clean(dir))
		return
	}
	os.Exit(m.Run())
}
