// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Command image makes the project's container image for several architectures,
// without a container engine: what the Dockerfile makes, byte for byte the
// same every time. It writes an OCI image layout, the same as a tar archive,
// and an SPDX document for each architecture, which the layout holds as well,
// attached to the image it is about.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// options are what the command line says.
type options struct {
	source    string        // the project's source tree
	out       string        // directory to write to
	name      string        // name and tag that engines give the image when they load it
	version   string        // version stamped into programs and labels
	platforms []v1.Platform // what to build for
	created   time.Time     // age of everything in the image
}

func main() {
	opts, err := parse(os.Args[1:])
	if err == nil {
		err = run(opts)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	var opts options
	flags := flag.NewFlagSet("image", flag.ExitOnError)
	flags.StringVar(&opts.source, "source", ".", "the project's source tree")
	flags.StringVar(&opts.out, "out", "dist", "directory to write to; what an earlier run wrote there is replaced")
	flags.StringVar(&opts.name, "name", "", "NAME:TAG that an engine gives the image when it loads it")
	flags.StringVar(&opts.version, "version", "", "version of the project")
	platforms := flags.String("platforms", "linux/amd64,linux/arm64", "what to build for, separated by commas")
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	if opts.version == "" || !strings.Contains(opts.name, ":") {
		return options{}, fmt.Errorf("-version=VERSION and -name=NAME:TAG are needed")
	}
	for text := range strings.SplitSeq(*platforms, ",") {
		platform, err := v1.ParsePlatform(text)
		if err != nil {
			return options{}, fmt.Errorf("-platforms: %w", err)
		}
		opts.platforms = append(opts.platforms, *platform)
	}
	// The convention of reproducible builds: the time of the commit, not of
	// the build. Without it everything is as old as can be.
	epoch := os.Getenv("SOURCE_DATE_EPOCH")
	if epoch == "" {
		epoch = "0"
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return options{}, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	opts.created = time.Unix(seconds, 0).UTC()
	return opts, nil
}

func run(opts options) error {
	work, err := os.MkdirTemp("", "image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := os.MkdirAll(opts.out, 0o755); err != nil {
		return err
	}
	certificates, err := authorities()
	if err != nil {
		return err
	}
	var variants []variant
	for _, platform := range opts.platforms {
		programs, err := build(opts, platform, filepath.Join(work, platform.Architecture))
		if err != nil {
			return err
		}
		files, err := contents(opts.source, programs, certificates)
		if err != nil {
			return err
		}
		document, err := describe(opts, platform, programs)
		if err != nil {
			return err
		}
		name := strings.ReplaceAll(platform.String(), "/", "-") + ".spdx.json"
		if err := os.WriteFile(filepath.Join(opts.out, name), document, 0o644); err != nil {
			return err
		}
		variants = append(variants, variant{platform: platform, files: files, document: document})
	}
	digest, err := writeLayout(opts, variants)
	if err != nil {
		return err
	}
	fmt.Println(digest)
	return nil
}
