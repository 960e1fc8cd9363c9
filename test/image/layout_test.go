// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package image

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// descriptor names a blob of a layout.
type descriptor struct {
	MediaType    string            `json:"mediaType"`
	ArtifactType string            `json:"artifactType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	Annotations  map[string]string `json:"annotations"`
	Platform     struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
	} `json:"platform"`
}

// manifest is an index (Manifests) or an image (Config and Layers).
type manifest struct {
	MediaType string       `json:"mediaType"`
	Manifests []descriptor `json:"manifests"`
	Config    descriptor   `json:"config"`
	Layers    []descriptor `json:"layers"`
	Subject   *descriptor  `json:"subject"`
}

// configuration is what an image says about itself besides its files.
type configuration struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Config       struct {
		User       string
		Env        []string
		Entrypoint []string
		Cmd        []string
		WorkingDir string
		Labels     map[string]string
	} `json:"config"`
	RootFS struct {
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// entry is a file or directory of an image.
type entry struct {
	Mode int64
	User int
	data string // not compared: it has no exported name
}

// layout is an OCI image layout on disk.
type layout struct {
	tb  testing.TB
	dir string
}

// index reads the layout's own list.
func (l layout) index() manifest {
	l.tb.Helper()
	data, err := os.ReadFile(filepath.Join(l.dir, "index.json"))
	if err != nil {
		l.tb.Fatal(err)
	}
	return decode[manifest](l.tb, data)
}

// blob reads what a descriptor names, and checks that it is that.
func (l layout) blob(d descriptor) []byte {
	l.tb.Helper()
	algorithm, digest, _ := strings.Cut(d.Digest, ":")
	data, err := os.ReadFile(filepath.Join(l.dir, "blobs", algorithm, digest))
	if err != nil {
		l.tb.Fatal(err)
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != digest || int64(len(data)) != d.Size {
		l.tb.Fatalf("blob %s has another digest or size", d.Digest)
	}
	return data
}

func (l layout) manifest(d descriptor) manifest {
	l.tb.Helper()
	return decode[manifest](l.tb, l.blob(d))
}

// images returns the descriptors of the images by architecture.
func (l layout) images() map[string]descriptor {
	l.tb.Helper()
	images := map[string]descriptor{}
	for _, d := range l.manifest(l.index().Manifests[0]).Manifests {
		images[d.Platform.Architecture] = d
	}
	return images
}

// files unpacks an image. Paths have no slash at either end.
func (l layout) files(d descriptor) map[string]entry {
	l.tb.Helper()
	files := map[string]entry{}
	for _, layer := range l.manifest(d).Layers {
		compressed, err := gzip.NewReader(strings.NewReader(string(l.blob(layer))))
		if err != nil {
			l.tb.Fatal(err)
		}
		archive := tar.NewReader(compressed)
		for {
			header, err := archive.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				l.tb.Fatal(err)
			}
			data, err := io.ReadAll(archive)
			if err != nil {
				l.tb.Fatal(err)
			}
			mode := header.Mode
			if header.Typeflag == tar.TypeDir {
				mode |= int64(os.ModeDir)
			}
			files[strings.Trim(header.Name, "/")] = entry{Mode: mode, User: header.Uid, data: string(data)}
		}
	}
	return files
}

func (l layout) configuration(d descriptor) configuration {
	l.tb.Helper()
	return decode[configuration](l.tb, l.blob(l.manifest(d).Config))
}

func decode[T any](tb testing.TB, data []byte) T {
	tb.Helper()
	var value T
	if err := json.Unmarshal(data, &value); err != nil {
		tb.Fatalf("%v: %s", err, data)
	}
	return value
}
