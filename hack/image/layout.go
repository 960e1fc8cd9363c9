// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// documentType is the media type of an SPDX document.
const documentType types.MediaType = "application/spdx+json"

// variant is the image of one platform.
type variant struct {
	platform v1.Platform
	files    []file
	document []byte // the SPDX document about it
}

// configuration is what the image says about itself besides its files. The
// Dockerfile says the same.
func configuration(opts options) v1.Config {
	return v1.Config{
		Entrypoint: []string{"/manager"},
		Env:        []string{"PATH=/"},
		User:       "65532:65532",
		WorkingDir: "/",
		Labels: map[string]string{
			"org.opencontainers.image.title":       "nix-builder-operator",
			"org.opencontainers.image.description": "Operator, dispatcher and connect helper for Nix remote builders in Kubernetes",
			"org.opencontainers.image.licenses":    "Apache-2.0",
			"org.opencontainers.image.version":     opts.version,
		},
	}
}

// image makes the image of one platform.
func image(opts options, x variant) (v1.Image, error) {
	packed, err := archive(x.files, opts.created)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(packed)), nil
	}, tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
	if err != nil {
		return nil, err
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	result, err := mutate.Append(base, mutate.Addendum{
		Layer:   layer,
		History: v1.History{Created: v1.Time{Time: opts.created}, CreatedBy: "hack/image"},
	})
	if err != nil {
		return nil, err
	}
	config, err := result.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Variant = x.platform.OS, x.platform.Architecture, x.platform.Variant
	config.Created = v1.Time{Time: opts.created}
	config.Config = configuration(opts)
	return mutate.ConfigFile(result, config)
}

// attachment makes the artifact that ties a document to the image it is about:
// registries list it as a referrer of the image.
func attachment(document []byte, subject v1.Descriptor) (v1.Image, error) {
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), documentType)
	result, err := mutate.AppendLayers(base, static.NewLayer(document, documentType))
	if err != nil {
		return nil, err
	}
	subject.Platform = nil // a subject is named by its digest alone
	attached, ok := mutate.Subject(result, subject).(v1.Image)
	if !ok {
		return nil, fmt.Errorf("an image with a subject is no image")
	}
	return attached, nil
}

// writeLayout writes the layout and its archive, and returns the digest under
// which the image of all platforms is pinned.
func writeLayout(opts options, variants []variant) (v1.Hash, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	top := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	var attachments []mutate.IndexAddendum
	for _, x := range variants {
		made, err := image(opts, x)
		if err != nil {
			return v1.Hash{}, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: made, Descriptor: v1.Descriptor{Platform: &x.platform}})
		subject, err := partial.Descriptor(made)
		if err != nil {
			return v1.Hash{}, err
		}
		attached, err := attachment(x.document, *subject)
		if err != nil {
			return v1.Hash{}, err
		}
		attachments = append(attachments, mutate.IndexAddendum{Add: attached, Descriptor: v1.Descriptor{ArtifactType: string(documentType)}})
	}
	tag := opts.name[strings.LastIndex(opts.name, ":")+1:]
	top = mutate.AppendManifests(top, mutate.IndexAddendum{Add: index, Descriptor: v1.Descriptor{Annotations: map[string]string{
		"org.opencontainers.image.ref.name": tag,
		// What containerd and those who build on it name the image when they load it.
		"io.containerd.image.name": qualified(opts.name),
	}}})
	top = mutate.AppendManifests(top, attachments...)

	dir := filepath.Join(opts.out, "image")
	if err := os.RemoveAll(dir); err != nil {
		return v1.Hash{}, err
	}
	if _, err := layout.Write(dir, top); err != nil {
		return v1.Hash{}, fmt.Errorf("write the layout: %w", err)
	}
	if err := packLayout(dir, filepath.Join(opts.out, "image.tar"), opts.created); err != nil {
		return v1.Hash{}, fmt.Errorf("pack the layout: %w", err)
	}
	return index.Digest()
}

// qualified is a name as engines complete it.
func qualified(name string) string {
	first, rest, found := strings.Cut(name, "/")
	switch {
	case !found:
		return "docker.io/library/" + name
	case strings.ContainsAny(first, ".:") || first == "localhost":
		return name
	default:
		return "docker.io/" + first + "/" + rest
	}
}

// packLayout packs a directory, in the order of its paths.
func packLayout(dir, target string, modified time.Time) error {
	out, err := os.Create(target)
	if err != nil {
		return err
	}
	defer out.Close()
	w := tar.NewWriter(out)
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: modified, Format: tar.FormatPAX}
		if err := w.WriteHeader(header); err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	})
	if err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return out.Close()
}
