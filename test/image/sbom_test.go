// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package image

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// document is what these tests read of an SPDX document.
type document struct {
	SPDXVersion string `json:"spdxVersion"`
	Packages    []struct {
		SPDXID       string
		Name         string `json:"name"`
		Version      string `json:"versionInfo"`
		ExternalRefs []struct {
			Locator string `json:"referenceLocator"`
		} `json:"externalRefs"`
	} `json:"packages"`
	Files []struct {
		SPDXID    string
		Name      string `json:"fileName"`
		Checksums []struct {
			Algorithm string `json:"algorithm"`
			Value     string `json:"checksumValue"`
		} `json:"checksums"`
	} `json:"files"`
	Relationships []struct {
		Element string `json:"spdxElementId"`
		Type    string `json:"relationshipType"`
		Related string `json:"relatedSpdxElement"`
	} `json:"relationships"`
}

// The document that lies beside the image is the one attached to it.
func TestDocumentIsAttached(t *testing.T) {
	t.Parallel()
	images := made(t)
	l := layout{t, filepath.Join(images.first, "image")}
	subjects := map[string]string{}
	for _, d := range l.index().Manifests[1:] {
		attached := l.manifest(d)
		equal(t, "kind of artifact", "application/spdx+json", d.ArtifactType)
		equal(t, "kind of content", "application/spdx+json", attached.Layers[0].MediaType)
		if attached.Subject == nil {
			t.Fatal("an artifact is attached to nothing")
		}
		subjects[attached.Subject.Digest] = string(l.blob(attached.Layers[0]))
	}
	for architecture, image := range l.images() {
		beside, err := os.ReadFile(filepath.Join(images.first, "linux-"+architecture+".spdx.json"))
		if err != nil {
			t.Fatal(err)
		}
		equal(t, architecture, string(beside), subjects[image.Digest])
	}
}

// A document is about the programs that are in the image, and names all that
// was linked into them.
func TestDocumentIsComplete(t *testing.T) {
	t.Parallel()
	images := made(t)
	l := layout{t, filepath.Join(images.first, "image")}
	for architecture, image := range l.images() {
		text, err := os.ReadFile(filepath.Join(images.first, "linux-"+architecture+".spdx.json"))
		if err != nil {
			t.Fatal(err)
		}
		found := decode[document](t, text)
		equal(t, "version of SPDX", "SPDX-2.3", found.SPDXVersion)
		packages := map[string]string{} // name@version by identifier
		for _, p := range found.Packages {
			if packages[p.SPDXID] != "" {
				t.Errorf("%s: two packages have the identifier %s", architecture, p.SPDXID)
			}
			packages[p.SPDXID] = p.Name + "@" + p.Version
			for _, reference := range p.ExternalRefs {
				equal(t, "locator", "pkg:golang/"+p.Name+"@"+p.Version, reference.Locator)
			}
		}
		files := l.files(image)
		var described []string
		for _, f := range found.Files {
			name := strings.TrimPrefix(f.Name, "./")
			described = append(described, name)
			sum := sha256.Sum256([]byte(files[name].data))
			equal(t, name, hex.EncodeToString(sum[:]), f.Checksums[1].Value)
			var linked []string
			for _, r := range found.Relationships {
				if r.Element == f.SPDXID && r.Type == "STATIC_LINK" {
					linked = append(linked, packages[r.Related])
				}
			}
			slices.Sort(linked)
			equal(t, name, modulesOf(t, files[name].data), linked)
		}
		var programs []string
		for _, name := range slices.Sorted(maps.Keys(files)) {
			if files[name].Mode == 0o755 {
				programs = append(programs, name)
			}
		}
		equal(t, architecture, programs, described)
	}
}

// modulesOf asks a program itself.
func modulesOf(t *testing.T, program string) []string {
	t.Helper()
	info, err := buildinfo.Read(strings.NewReader(program))
	if err != nil {
		t.Fatal(err)
	}
	modules := []string{info.Main.Path + "@" + version, "stdlib@" + strings.TrimPrefix(info.GoVersion, "go")}
	for _, dependency := range info.Deps {
		modules = append(modules, dependency.Path+"@"+dependency.Version)
	}
	slices.Sort(modules)
	return modules
}
