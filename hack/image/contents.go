// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"archive/tar"
	"bytes"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// programNames are the programs of the image, each cmd/NAME and then /NAME.
var programNames = []string{"manager", "nix-dispatch-connect", "nix-dispatcher"}

// program is a program that was built.
type program struct {
	name string
	file string // where it is now
}

// file is a file of the image.
type file struct {
	path string // without a slash at its start
	mode int64
	data []byte
}

// build compiles the programs with the flags of `make build`, so that both
// share what they compile.
func build(opts options, platform v1.Platform, dir string) ([]program, error) {
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags",
		"-s -w -X nixbuilder.io/nix-builder-operator/internal/version.version=" + opts.version, "-o", dir + "/"}
	var programs []program
	for _, name := range programNames {
		args = append(args, "./cmd/"+name)
		programs = append(programs, program{name: name, file: filepath.Join(dir, name)})
	}
	command := exec.Command("go", args...)
	command.Dir = opts.source
	command.Stderr = os.Stderr
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOOS="+platform.OS, "GOARCH="+platform.Architecture, "GOWORK=off")
	if err := command.Run(); err != nil {
		return nil, fmt.Errorf("build for %s: %w", platform.String(), err)
	}
	return programs, nil
}

// authorities is a file with the certificates of Mozilla's programme, as the
// module that go.mod pins has them. Those that it trusts with restrictions,
// which such a file cannot express, are left out.
func authorities() ([]byte, error) {
	var text bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint != nil {
			continue
		}
		if err := pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}); err != nil {
			return nil, err
		}
	}
	return text.Bytes(), nil
}

// contents lists the files of the image. The Dockerfile copies the same.
func contents(source string, programs []program, certificates []byte) ([]file, error) {
	files := []file{{path: "etc/ssl/certs/ca-certificates.crt", mode: 0o644, data: certificates}}
	for _, name := range []string{"passwd", "group"} {
		data, err := os.ReadFile(filepath.Join(source, "hack", "image", name))
		if err != nil {
			return nil, err
		}
		files = append(files, file{path: "etc/" + name, mode: 0o644, data: data})
	}
	for _, p := range programs {
		data, err := os.ReadFile(p.file)
		if err != nil {
			return nil, err
		}
		files = append(files, file{path: p.name, mode: 0o755, data: data})
	}
	return files, nil
}

// archive packs files, with the directories that they lie in, in the order of
// their paths.
func archive(files []file, modified time.Time) ([]byte, error) {
	headers := map[string]*tar.Header{}
	data := map[string][]byte{}
	for _, f := range files {
		headers[f.path] = &tar.Header{Typeflag: tar.TypeReg, Name: f.path, Mode: f.mode, Size: int64(len(f.data))}
		data[f.path] = f.data
		for dir := path.Dir(f.path); dir != "."; dir = path.Dir(dir) {
			headers[dir] = &tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}
		}
	}
	var names []string
	for name := range headers {
		names = append(names, name)
	}
	slices.SortFunc(names, strings.Compare)
	var packed bytes.Buffer
	w := tar.NewWriter(&packed)
	for _, name := range names {
		headers[name].ModTime = modified
		headers[name].Format = tar.FormatPAX
		if err := w.WriteHeader(headers[name]); err != nil {
			return nil, err
		}
		if _, err := w.Write(data[name]); err != nil {
			return nil, err
		}
	}
	return packed.Bytes(), w.Close()
}
