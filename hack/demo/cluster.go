// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"context"
	_ "embed"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"nixbuilder.io/nix-builder-operator/test/envtest"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// build makes the binaries, as make does.
func (d *demo) build(ctx context.Context) error {
	in := &shell{screen: d.screen, dir: d.tree, env: d.shell.env}
	_, err := in.run(ctx, "make build")
	return err
}

func (d *demo) startCluster(context.Context) error {
	log, err := os.Create(filepath.Join(d.dir, "kubernetes.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	d.cluster, err = envtest.Start(envtest.Options{CRDs: []string{}, Output: log})
	if err != nil {
		return err
	}
	d.later("the API server", d.cluster.Stop)
	kubeconfig := filepath.Join(d.dir, "kubeconfig")
	if err := d.cluster.WriteKubeconfig(kubeconfig); err != nil {
		return err
	}
	binaries := d.binaries()
	d.screen.say("etcd and kube-apiserver are up. There are no nodes: pods are played by programs on this machine.")
	d.screen.command("cd " + d.dir)
	d.screen.command("export KUBECONFIG=" + kubeconfig)
	d.screen.command("export PATH=" + binaries + ":$PATH")
	d.shell.env = append(d.shell.env, "KUBECONFIG="+kubeconfig, "PATH="+binaries+":"+os.Getenv("PATH"))
	return nil
}

// binaries is what to put into PATH: the programs of this tree, the plugin for kubectl
// among them, and kubectl.
func (d *demo) binaries() string {
	return filepath.Join(d.tree, "bin") + ":" + filepath.Dir(d.cluster.Kubectl())
}

func (d *demo) startBuilders(ctx context.Context) error {
	var err error
	d.lab, err = nixlab.New(nixlab.Options{Progress: func(line string) { d.screen.say("%s", line) }})
	if err != nil {
		return err
	}
	d.later("the builders and the client", d.lab.Close)
	if _, err := d.lab.Prepare(ctx, nixlab.Versions()...); err != nil {
		return err
	}
	for i, version := range nixlab.Versions() {
		b := &builder{user: nixlab.TrustedUser}
		note := ""
		if i == len(nixlab.Versions())-1 {
			b.user, note = nixlab.UntrustedUser, ", which is not in its trusted-users: a mistake to be found"
		}
		b.Builder, err = d.lab.StartBuilder(ctx, nixlab.BuilderOptions{Name: fmt.Sprintf("linux-%d", i+1), Version: version})
		if err != nil {
			return err
		}
		d.builders = append(d.builders, b)
		d.screen.say("%s  ssh %s@%s  Nix %s%s", b.Name(), b.user, b.Address(), b.Nix(), note)
	}
	return nil
}

// operatorNamespace is that of config/default.
const operatorNamespace = "nix-builder-operator"

func (d *demo) startOperator(ctx context.Context) error {
	d.screen.say("The CRD, the roles and the Deployment, as on any cluster:")
	if _, err := d.shell.run(ctx, "kubectl apply -k "+filepath.Join(d.tree, "config", "default")); err != nil {
		return err
	}
	d.screen.say("The operator's pod is played by its program, with the rights of its service account:")
	token := "token=$(kubectl create token --duration=24h -n " + operatorNamespace + " nix-builder-operator)\n" +
		"      cp kubeconfig operator.kubeconfig\n" +
		"      kubectl --kubeconfig operator.kubeconfig config set-credentials operator --token=$token\n" +
		"      kubectl --kubeconfig operator.kubeconfig config set-context --current --user=operator"
	if _, err := d.shell.run(ctx, token); err != nil {
		return err
	}
	address, err := freeAddress()
	if err != nil {
		return err
	}
	d.screen.say("Loopback addresses, which it denies by default, are where the builders of this demo are.")
	d.operator, err = d.shell.start("operator", "manager", "--kubeconfig=operator.kubeconfig",
		"--leader-elect", "--leader-election-namespace="+operatorNamespace, "--denied-ranges=169.254.0.0/16",
		"--health-probe-bind-address="+address, "--metrics-bind-address=0", "--log-format=console")
	if err != nil {
		return err
	}
	d.later("the operator", d.operator.stop)
	return d.operator.waitFor(ctx, time.Minute, "ready", func() bool {
		response, err := http.Get("http://" + address + "/readyz")
		if err != nil {
			return false
		}
		response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
}

// freeAddress is a loopback address that nobody listens on right now.
func freeAddress() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer listener.Close()
	return listener.Addr().String(), nil
}

//go:embed builder.yaml
var sample string

func (d *demo) applySamples(ctx context.Context) error {
	var all strings.Builder
	text := template.Must(template.New("builder.yaml").Parse(sample))
	for i, b := range d.builders {
		if i > 0 {
			all.WriteString("---\n")
		}
		err := text.Execute(&all, map[string]any{
			"Name": b.Name(), "Host": b.IP(), "Port": b.Port(), "HostKey": b.HostKey(), "User": b.user, "System": nixlab.System(),
		})
		if err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(d.dir, "builders.yaml"), []byte(all.String()), 0o644); err != nil {
		return err
	}
	return d.runAll(ctx,
		"kubectl create namespace "+namespace,
		"kubectl config set-context --current --namespace="+namespace,
		"kubectl create secret generic builder-key --type=kubernetes.io/ssh-auth --from-file=ssh-privatekey="+d.lab.ClientKeyFile(),
		"kubectl label secret builder-key nixbuilder.io/credential=true",
		"cat builders.yaml",
		"kubectl apply -f builders.yaml",
	)
}

func (d *demo) runAll(ctx context.Context, lines ...string) error {
	for _, line := range lines {
		if _, err := d.shell.run(ctx, line); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) showStatus(ctx context.Context) error {
	broken := d.builders[len(d.builders)-1].Name()
	var ready []string
	for _, b := range d.builders[:len(d.builders)-1] {
		ready = append(ready, "nixbuilder/"+b.Name())
	}
	err := d.runAll(ctx,
		"kubectl wait --timeout=60s --for=condition=Ready "+strings.Join(ready, " "),
		"kubectl wait --timeout=60s --for=condition=Trusted=False nixbuilder/"+broken,
		"kubectl get nixbuilders",
	)
	if err != nil {
		return err
	}
	d.screen.say("Why is %s not Ready?", broken)
	// The exit status says that something is wrong, as it should here.
	why, err := d.shell.run(ctx, "kubectl nixbuilder doctor "+broken+" || test $? = 1")
	if err != nil {
		return err
	}
	if !strings.Contains(why, "trusted-users") {
		return fmt.Errorf("the operator does not say what to change on %s", broken)
	}
	d.screen.say("The file for clients has the two that are:")
	file, err := d.shell.run(ctx, "kubectl get configmap nix-machines -o jsonpath='{.data.machines}'")
	if err != nil {
		return err
	}
	return d.checkMachines(file)
}

// checkMachines makes sure that the rendered file has the builders that are
// ready and not the broken one.
func (d *demo) checkMachines(file string) error {
	for i, b := range d.builders {
		found := strings.Contains(file, b.HostKey()) || strings.Contains(file, b.IP()) || strings.Contains(file, b.Name())
		if wanted := i < len(d.builders)-1; found != wanted {
			return fmt.Errorf("the machines file is wrong about %s: listed %t, should be %t", b.Name(), found, wanted)
		}
	}
	return nil
}
