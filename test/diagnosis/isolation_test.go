// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// programsVariable is set in the process that has a network of its own. Its value is
// the directory of the programs under test.
const programsVariable = "DIAGNOSIS_PROGRAMS"

// atOnce is how many builders are examined at the same time: most of the time is
// spent waiting.
const atOnce = "12"

// gateway is this machine in a network of which machines can be taken: what is sent
// there to an address that nobody has goes nowhere. An API server does not start
// without an address that is not of loopback, either.
const gateway = "192.0.2.1"

// Addresses in that network for machines that vanish.
const (
	unroutable = "192.0.2.11"
	switchable = "192.0.2.12"
)

// TestMain runs the tests in a network of their own, in which machines can be made
// to vanish. What needs the internet or the compiler is done before.
func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() || nixlab.Prerequisites() != nil {
		os.Exit(m.Run())
	}
	if err := flag.Set("test.parallel", atOnce); err != nil {
		fail(err)
	}
	programs := os.Getenv(programsVariable)
	if programs == "" {
		fail(enterNetwork())
	}
	if err := errors.Join(ip("link", "set", "lo", "up"), ip("link", "add", "outages", "type", "veth", "peer", "name", "nobody"),
		ip("link", "set", "outages", "arp", "off", "up"), ip("link", "set", "nobody", "up"), ip("address", "add", gateway+"/24", "dev", "outages"),
		ip("route", "add", "default", "dev", "outages"),
		ip("address", "add", unroutable+"/32", "dev", "lo"), ip("address", "add", switchable+"/32", "dev", "lo")); err != nil {
		fail(err)
	}
	status := m.Run()
	if err := os.RemoveAll(programs); err != nil {
		fail(err)
	}
	os.Exit(status)
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "diagnosis:", err)
	os.Exit(1)
}

// enterNetwork starts this program anew, in the same process, with a network of its
// own. It returns only if that fails.
func enterNetwork() error {
	say := func(line string) { fmt.Fprintln(os.Stderr, line) }
	if _, err := nixlab.PrepareRootFS(context.Background(), say, append(nixlab.Versions(), nixlab.Nix23)...); err != nil {
		return err
	}
	programs, err := buildPrograms()
	if err != nil {
		return err
	}
	runtime.LockOSThread() // namespaces belong to threads
	if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make a network: %w", err)
	}
	return syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), programsVariable+"="+programs))
}

// buildPrograms returns a new directory with the programs that are tested from outside.
func buildPrograms() (string, error) {
	dir, err := os.MkdirTemp("", "diagnosis-")
	if err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-o", dir+"/", "./cmd/"+plugin)
	build.Dir = filepath.Join("..", "..")
	// The flags of `make build`, so that both share what they compile.
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false")
	if output, err := build.CombinedOutput(); err != nil {
		return "", errors.Join(fmt.Errorf("build %s: %w\n%s", plugin, err, output), os.RemoveAll(dir))
	}
	return dir, nil
}

// ip changes the network of the tests.
func ip(args ...string) error {
	if output, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %q: %w: %s", args, err, output)
	}
	return nil
}
