// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Command nixlab runs a lab for trying things by hand: a builder and a client
// of every Nix version, until it is interrupted. With -rootfs it only makes
// the root file systems, so that later runs start at once.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

func main() {
	rootfs := flag.Bool("rootfs", false, "make the root file systems, print their Nix versions, and stop")
	volume := flag.String("volume", "", "directory that clients see at "+nixlab.VolumePath+" (default: one inside the lab)")
	daemon := flag.Bool("daemon", false, "clients run their own nix-daemon and build as an ordinary user")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *rootfs, *volume, *daemon); err != nil {
		fmt.Fprintln(os.Stderr, "nixlab:", err)
		os.Exit(1)
	}
}

func progress(line string) { fmt.Fprintln(os.Stderr, line) }

func run(ctx context.Context, rootfsOnly bool, volume string, daemon bool) (err error) {
	if err := nixlab.Prerequisites(); err != nil {
		return err
	}
	if rootfsOnly {
		roots, err := nixlab.PrepareRootFS(ctx, progress, nixlab.Versions()...)
		for _, root := range roots {
			fmt.Printf("Nix %-8s %s\n", root.Nix, root.Dir)
		}
		return err
	}
	lab, err := nixlab.New(nixlab.Options{Progress: progress})
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := lab.Close(); err == nil {
			err = closeErr
		}
	}()
	if volume == "" {
		volume = filepath.Join(lab.Dir(), "volume")
		if err := os.Mkdir(volume, 0o755); err != nil {
			return err
		}
	}
	if err := start(ctx, lab, volume, daemon); err != nil {
		return err
	}
	fmt.Println("\nCtrl-C ends it all.")
	<-ctx.Done()
	return nil
}

// start boots the hosts, writes the machines file and tells how to use both.
func start(ctx context.Context, lab *nixlab.Lab, volume string, daemon bool) error {
	if _, err := lab.Prepare(ctx, nixlab.Versions()...); err != nil {
		return err
	}
	var machines strings.Builder
	for _, version := range nixlab.Versions() {
		suffix := strings.ReplaceAll(string(version), ".", "")
		builder, err := lab.StartBuilder(ctx, nixlab.BuilderOptions{Name: "b" + suffix, Version: version})
		if err != nil {
			return err
		}
		client, err := lab.StartClient(ctx, nixlab.ClientOptions{Name: "c" + suffix, Version: version, Volume: volume, Daemon: daemon})
		if err != nil {
			return err
		}
		machines.WriteString(builder.MachinesLine(4) + "\n")
		for _, host := range []*nixlab.Host{builder.Host, client.Host} {
			enter, err := host.EnterCommand()
			if err != nil {
				return err
			}
			fmt.Printf("%-8s Nix %-7s %s\n", host.Name(), host.Nix(), enter)
		}
	}
	file := filepath.Join(lab.Dir(), "machines")
	if err := os.WriteFile(file, []byte(machines.String()), 0o644); err != nil {
		return err
	}
	fmt.Printf("machines file: %s\nprivate key:   %s\nvolume:        %s (in clients: %s)\n", file, lab.ClientKeyFile(), volume, nixlab.VolumePath)
	return nil
}
