// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"nixbuilder.io/nix-builder-operator/test/captured"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// dispatcher is a running nix-dispatcher.
type dispatcher struct {
	// volume is the directory it shares with its clients.
	volume string
	// machines is the machines file it reads.
	machines string

	command *exec.Cmd
	done    chan struct{}
	log     captured.Text
}

// newDispatcher starts a dispatcher for the lines of a machines file and
// returns once its clients can begin. It lasts until the end of the current
// node, and so does all that it is given.
func newDispatcher(lines ...string) *dispatcher { return newDispatcherWith(nil, lines...) }

// newDispatcherWith is newDispatcher with flags besides those that every one needs.
func newDispatcherWith(flags []string, lines ...string) *dispatcher {
	GinkgoHelper()
	dir := GinkgoT().TempDir()
	d := &dispatcher{
		volume:   filepath.Join(dir, "volume"),
		machines: filepath.Join(dir, "machines"),
		done:     make(chan struct{}),
	}
	spool := filepath.Join(dir, "spool")
	for _, path := range []string{d.volume, spool} {
		Expect(os.Mkdir(path, 0o755)).To(Succeed())
	}
	d.setMachines(lines...)
	d.command = exec.Command(filepath.Join(programs, "nix-dispatcher"), append([]string{
		"--builders=" + d.machines,
		"--volume=" + d.volume,
		"--client-path=" + nixlab.VolumePath,
		"--spool-dir=" + spool,
		"--shutdown-timeout=5s",
	}, flags...)...)
	d.command.Stdout, d.command.Stderr = &d.log, &d.log
	d.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	Expect(d.command.Start()).To(Succeed())
	go func() {
		defer close(d.done)
		_ = d.command.Wait() // the log tells why
	}()
	DeferCleanup(d.stop)
	DeferCleanup(func() {
		if CurrentSpecReport().Failed() {
			AddReportEntry("log of the dispatcher", d.log.String())
		}
	})
	Eventually(func() error {
		return exec.Command(filepath.Join(programs, "nix-dispatcher"), "ready", "--volume="+d.volume).Run()
	}).WithTimeout(patience).Should(Succeed(), "the dispatcher's log:\n%s", &d.log)
	return d
}

// setMachines replaces the machines file as a whole.
func (d *dispatcher) setMachines(lines ...string) {
	GinkgoHelper()
	d.setList(strings.Join(lines, "\n") + "\n")
}

// setList replaces the list of builders, a machines file or builders.json.
func (d *dispatcher) setList(text string) {
	GinkgoHelper()
	Expect(os.WriteFile(d.machines+".new", []byte(text), 0o600)).To(Succeed())
	Expect(os.Rename(d.machines+".new", d.machines)).To(Succeed())
}

// stop ends the dispatcher in an orderly way.
func (d *dispatcher) stop() {
	GinkgoHelper()
	_ = d.command.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-d.done:
	case <-time.After(patience):
		_ = d.command.Process.Kill() // likewise
		<-d.done
		Fail("the dispatcher did not end; its log:\n" + d.log.String())
	}
}

// kill ends the dispatcher as the kernel does when memory is short.
func (d *dispatcher) kill() {
	GinkgoHelper()
	Expect(d.command.Process.Kill()).To(Succeed())
	<-d.done
}
