// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
)

// wire is a builder's link to the network of the tests: a pair of interfaces, near
// here and far on the builder, which goes when the builder does.
type wire struct {
	number int // of the builder, from 1
}

// farName is what the builder calls its end.
const farName = "lan0"

func (w wire) near() string { return fmt.Sprintf("builder%d", w.number) }

// address is the builder's.
func (w wire) address() string { return fmt.Sprintf("10.66.%d.2", w.number) }

// plug connects a builder that has just booted.
func (w wire) plug(ctx context.Context, pid int) error {
	// The end of the boot before is deleted by the kernel, but not at once.
	_ = run(ctx, "ip", "link", "delete", w.near())
	return errors.Join(
		run(ctx, "ip", "link", "add", w.near(), "type", "veth", "peer", "name", farName, "netns", fmt.Sprint(pid)),
		run(ctx, "ip", "address", "add", fmt.Sprintf("10.66.%d.1/30", w.number), "dev", w.near()),
		run(ctx, "ip", "link", "set", w.near(), "up"),
		w.far(ctx, pid, "ip", "address", "add", w.address()+"/30", "dev", farName),
		w.far(ctx, pid, "ip", "link", "set", farName, "up", "gso_max_segs", "1"),
		w.far(ctx, pid, "sh", "-c", "echo "+sendBuffers+" >/proc/sys/net/ipv4/tcp_wmem"),
	)
}

// sendBuffers, and segments that go out one by one, keep what builders send from
// waiting in their kernel, which delivers it even when they die.
const sendBuffers = "4096 8192 8192"

// far runs a program in the network of the builder.
func (w wire) far(ctx context.Context, pid int, args ...string) error {
	return run(ctx, "nsenter", append([]string{"--target", fmt.Sprint(pid), "--net"}, args...)...)
}

// unplug takes the near end down: the builder is unreachable, and this machine
// knows it.
func (w wire) unplug(ctx context.Context) error {
	return run(ctx, "ip", "link", "set", w.near(), "down")
}

// replug undoes unplug.
func (w wire) replug(ctx context.Context) error {
	return run(ctx, "ip", "link", "set", w.near(), "up")
}

// swallow takes the far end down: all that is sent vanishes, and nobody is told.
func (w wire) swallow(ctx context.Context, pid int) error {
	return w.far(ctx, pid, "ip", "link", "set", farName, "down")
}

// deliver undoes swallow.
func (w wire) deliver(ctx context.Context, pid int) error {
	return w.far(ctx, pid, "ip", "link", "set", farName, "up")
}

// slowDown limits what goes to the builder, in bytes per second; 0 is no limit.
func (w wire) slowDown(ctx context.Context, bytes int) error {
	return run(ctx, "tc", bucket(w.near(), bytes)...)
}

// slowUp limits what comes from the builder.
func (w wire) slowUp(ctx context.Context, network *os.File, bytes int) error {
	command := exec.CommandContext(ctx, "nsenter", append([]string{"--net=/proc/self/fd/3", "tc"}, bucket(farName, bytes)...)...)
	command.ExtraFiles = []*os.File{network}
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("limit the rate of a builder: %w: %s", err, output)
	}
	return nil
}

// bucket are the arguments of tc for a rate. Its bursts are short, so that even
// small answers take their time. What is queued already stays.
func bucket(device string, bytes int) []string {
	rate, burst := fmt.Sprint(bytes*8)+"bit", "2000"
	if bytes == 0 {
		rate, burst = "8gbit", "4000000"
	}
	return []string{"qdisc", "replace", "dev", device, "root", "tbf", "rate", rate, "burst", burst, "limit", "400000"}
}
