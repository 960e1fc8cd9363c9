// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// Directories of the demo that stand for volumes of a pod.
const (
	machinesVolume = "nix-machines" // the ConfigMap
	keysVolume     = "nix-keys"     // a Secret in each directory
	sharedVolume   = "nix-dispatch" // shared by sidecar and client
)

func (d *demo) startDispatcher(ctx context.Context) error {
	for _, name := range []string{machinesVolume, keysVolume, sharedVolume, "spool"} {
		if err := os.Mkdir(filepath.Join(d.dir, name), 0o755); err != nil {
			return err
		}
	}
	d.screen.say("The demo plays the kubelet and mounts ConfigMap nix-machines and Secret builder-key.")
	unmount, err := d.mount(ctx,
		&volume{dir: filepath.Join(d.dir, machinesVolume), object: &corev1.ConfigMap{}, name: "nix-machines"},
		&volume{dir: filepath.Join(d.dir, keysVolume, "builder-key"), object: &corev1.Secret{}, name: "builder-key"},
	)
	if err != nil {
		return err
	}
	d.later("the volumes", unmount)
	d.dispatcher, err = d.shell.start("dispatcher", "nix-dispatcher",
		"--builders="+machinesVolume+"/builders.json",
		"--keys-dir="+keysVolume,
		"--volume="+sharedVolume,
		"--client-path="+nixlab.VolumePath,
		"--spool-dir=spool",
		"--status-address=127.0.0.1:0",
	)
	if err != nil {
		return err
	}
	d.later("the dispatcher", d.dispatcher.stop)
	err = d.dispatcher.waitFor(ctx, 30*time.Second, "ready", func() bool {
		check := exec.CommandContext(ctx, filepath.Join(d.tree, "bin", "nix-dispatcher"), "ready", "--volume="+filepath.Join(d.dir, sharedVolume))
		return check.Run() == nil
	})
	if err != nil {
		return err
	}
	return d.runAll(ctx, "ls -l "+sharedVolume, "cut -c -130 "+sharedVolume+"/machines")
}

// graph is the file that the client builds.
const graph = "/root/graph.nix"

func (d *demo) buildGraph(ctx context.Context) error {
	var err error
	d.client, err = d.lab.StartClient(ctx, nixlab.ClientOptions{Name: "client", Volume: filepath.Join(d.dir, sharedVolume)})
	if err != nil {
		return err
	}
	if err := d.client.WriteFile(graph, nixlab.Graph("hello", 0.3)+"\n", 0o644); err != nil {
		return err
	}
	d.screen.say("On the client, with Nix %s:", d.client.Nix())
	for _, line := range []string{
		"ip -brief address; command -v ssh || echo no ssh here",
		"cat /etc/nix/nix.conf",
		"cat " + graph,
	} {
		if _, err := d.onClient(ctx, line); err != nil {
			return err
		}
	}
	began := time.Now()
	output, err := d.onClient(ctx, "nix-build --no-out-link "+graph)
	if err != nil {
		return err
	}
	d.screen.say("%d derivations in %.1f s", nixlab.GraphSize, time.Since(began).Seconds())
	if !strings.HasPrefix(output, "/nix/store/") || !strings.HasSuffix(output, "-hello\n") {
		return fmt.Errorf("nix-build printed %q and not the path of the program", output)
	}
	program, err := d.onClient(ctx, "cat "+strings.TrimSpace(output))
	if err != nil {
		return err
	}
	if lines := strings.Count(program, "source"); lines != 8 {
		return fmt.Errorf("the program is made of %d sources, not 8", lines)
	}
	return nil
}

// onClient shows and runs a command line on the client, and returns its
// standard output.
func (d *demo) onClient(ctx context.Context, line string) (string, error) {
	d.screen.line("  client$ " + line)
	defer d.screen.watch(line)()
	command, err := d.client.NixCommand(ctx, "bash", "-c", line)
	if err != nil {
		return "", err
	}
	var output strings.Builder
	command.Stdout, command.Stderr = io.MultiWriter(d.screen, &output), d.screen
	if err := command.Run(); err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		return "", fmt.Errorf("%s on the client: %w", line, err)
	}
	return output.String(), nil
}

// showBuilds asks the builders themselves, by the logs that Nix keeps there.
func (d *demo) showBuilds(ctx context.Context) error {
	total := 0
	for i, b := range d.builders {
		output, err := b.Exec(ctx, "find", "/nix/var/log/nix/drvs", "-type", "f", "-printf", "%f\n")
		if err != nil {
			return err
		}
		var names []string
		for _, file := range strings.Fields(output) {
			name, _, _ := strings.Cut(file, ".drv")
			_, name, _ = strings.Cut(name, "-") // without the rest of the hash
			names = append(names, name)
		}
		slices.Sort(names)
		d.screen.say("%s (Nix %s) built %d: %s", b.Name(), b.Nix(), len(names), strings.Join(names, ", "))
		total += len(names)
		if usable := i < len(d.builders)-1; usable != (len(names) > 0) {
			return fmt.Errorf("%s built %d derivations", b.Name(), len(names))
		}
	}
	if total != nixlab.GraphSize {
		return fmt.Errorf("the builders built %d derivations, not %d", total, nixlab.GraphSize)
	}
	return nil
}

// statusPage is where the dispatcher says in its log that it serves its status page.
var statusPage = regexp.MustCompile(`msg="Serving status page" address=(\S+)`)

// explain says how to look around once the demo has returned.
func (d *demo) explain() {
	d.screen.step("Everything is left running")
	d.screen.say("Use the cluster:")
	d.screen.command("export KUBECONFIG=" + filepath.Join(d.dir, "kubeconfig") + " PATH=" + d.binaries() + ":$PATH")
	d.screen.command("kubectl get nixbuilders; kubectl describe nixbuilder " + d.builders[len(d.builders)-1].Name())
	d.screen.command("kubectl nixbuilder doctor " + d.builders[len(d.builders)-1].Name() + "   # what is wrong, and what to change")
	d.screen.command("kubectl get events; kubectl get configmap nix-machines -o yaml")
	if log, err := os.ReadFile(d.dispatcher.log); err == nil {
		if served := statusPage.FindSubmatch(log); served != nil {
			d.screen.say("Look at what the dispatcher does: http://%s", served[1])
		}
	}
	d.screen.say("Log in to the machines:")
	for _, host := range d.hosts() {
		if enter, err := host.EnterCommand(); err == nil {
			d.screen.command(enter + "   # " + host.Name())
		}
	}
	d.screen.say("On the third, mend its configuration. It is then Ready within half a minute and gets builds:")
	d.screen.line(`  linux-3$ echo "extra-trusted-users = ` + nixlab.UntrustedUser + `" >>/etc/nix/nix.conf`)
	d.screen.line("  linux-3$ kill $(cat /run/nix-daemon.pid); NIX_REMOTE=local nix-daemon >/dev/null 2>&1 &")
	d.screen.say("On the client: nix-build --no-out-link %s, or any expression of your own.", graph)
	d.screen.say("Read the logs, and the files that stand for volumes, in %s", d.dir)
	d.screen.say("End it all and remove its files:")
	d.screen.command(fmt.Sprintf("kill %d", os.Getpid()))
}

func (d *demo) hosts() []*nixlab.Host {
	hosts := []*nixlab.Host{d.client.Host}
	for _, b := range d.builders {
		hosts = append(hosts, b.Host)
	}
	return hosts
}
