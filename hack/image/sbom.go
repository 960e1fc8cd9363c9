// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"crypto/sha1"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// The parts of SPDX 2.3 that a document about a few Go programs takes.
type (
	spdxDocument struct {
		Version       string             `json:"spdxVersion"`
		License       string             `json:"dataLicense"`
		ID            string             `json:"SPDXID"`
		Name          string             `json:"name"`
		Namespace     string             `json:"documentNamespace"`
		Creation      spdxCreation       `json:"creationInfo"`
		Packages      []spdxPackage      `json:"packages"`
		Files         []spdxFile         `json:"files"`
		Relationships []spdxRelationship `json:"relationships"`
	}
	spdxCreation struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
	}
	spdxPackage struct {
		ID        string          `json:"SPDXID"`
		Name      string          `json:"name"`
		Version   string          `json:"versionInfo"`
		Location  string          `json:"downloadLocation"`
		Analyzed  bool            `json:"filesAnalyzed"`
		Concluded string          `json:"licenseConcluded"`
		Declared  string          `json:"licenseDeclared"`
		Copyright string          `json:"copyrightText"`
		Purpose   string          `json:"primaryPackagePurpose"`
		Refs      []spdxReference `json:"externalRefs,omitempty"`
	}
	spdxReference struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	spdxFile struct {
		ID        string         `json:"SPDXID"`
		Name      string         `json:"fileName"`
		Types     []string       `json:"fileTypes"`
		Checksums []spdxChecksum `json:"checksums"`
		Concluded string         `json:"licenseConcluded"`
		Copyright string         `json:"copyrightText"`
	}
	spdxChecksum struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"checksumValue"`
	}
	spdxRelationship struct {
		Element string `json:"spdxElementId"`
		Type    string `json:"relationshipType"`
		Related string `json:"relatedSpdxElement"`
	}
)

// noAssertion says that a document leaves something open.
const noAssertion = "NOASSERTION"

const imageID = "SPDXRef-Image"

// describe writes the document about the image of one platform from what Go
// has put into the programs: the modules that each was linked from.
func describe(opts options, platform v1.Platform, programs []program) ([]byte, error) {
	document := spdxDocument{
		Version:  "SPDX-2.3",
		License:  "CC0-1.0",
		ID:       "SPDXRef-DOCUMENT",
		Name:     opts.name + " " + platform.String(),
		Creation: spdxCreation{Created: opts.created.Format(time.RFC3339), Creators: []string{"Tool: hack/image"}},
		Packages: []spdxPackage{newPackage(imageID, "nix-builder-operator", opts.version, "CONTAINER", "Apache-2.0", "")},
		Relationships: []spdxRelationship{
			{Element: "SPDXRef-DOCUMENT", Type: "DESCRIBES", Related: imageID},
		},
	}
	all := sha256.New()
	modules := map[string]spdxPackage{}
	for _, p := range programs {
		data, err := os.ReadFile(p.file)
		if err != nil {
			return nil, err
		}
		all.Write(data)
		info, err := buildinfo.ReadFile(p.file)
		if err != nil {
			return nil, fmt.Errorf("modules of %s: %w", p.name, err)
		}
		id := "SPDXRef-File-" + p.name
		document.Files = append(document.Files, newFile(id, "./"+p.name, data))
		document.Relationships = append(document.Relationships, spdxRelationship{Element: imageID, Type: "CONTAINS", Related: id})
		for _, linked := range linkedModules(info, opts.version) {
			modules[linked.ID] = linked
			document.Relationships = append(document.Relationships, spdxRelationship{Element: id, Type: "STATIC_LINK", Related: linked.ID})
		}
	}
	for _, linked := range modules {
		document.Packages = append(document.Packages, linked)
	}
	slices.SortFunc(document.Packages[1:], func(a, b spdxPackage) int { return strings.Compare(a.Name, b.Name) })
	// Unique, as it has to be, and the same for the same programs.
	document.Namespace = "https://nixbuilder.io/spdx/" + hex.EncodeToString(all.Sum(nil))
	text, err := json.MarshalIndent(document, "", "  ")
	return append(text, '\n'), err
}

// linkedModules are the packages that stand for the modules of a program, for
// Go's own library, and for the project itself.
func linkedModules(info *debug.BuildInfo, version string) []spdxPackage {
	goVersion := strings.TrimPrefix(info.GoVersion, "go")
	packages := []spdxPackage{
		moduleWith("Apache-2.0", info.Main.Path, version),
		moduleWith("BSD-3-Clause", "stdlib", goVersion),
	}
	for _, dependency := range info.Deps {
		if dependency.Replace != nil {
			dependency = dependency.Replace
		}
		packages = append(packages, moduleWith(noAssertion, dependency.Path, dependency.Version))
	}
	return packages
}

func moduleWith(license, path, version string) spdxPackage {
	identifier := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' {
			return r
		}
		return '-'
	}, path)
	return newPackage("SPDXRef-Module-"+identifier, path, version, "LIBRARY", license, "pkg:golang/"+path+"@"+version)
}

func newPackage(id, name, version, purpose, license, locator string) spdxPackage {
	made := spdxPackage{
		ID: id, Name: name, Version: version, Purpose: purpose, Location: noAssertion,
		Concluded: license, Declared: license, Copyright: noAssertion,
	}
	if locator != "" {
		made.Refs = []spdxReference{{Category: "PACKAGE-MANAGER", Type: "purl", Locator: locator}}
	}
	return made
}

func newFile(id, name string, data []byte) spdxFile {
	first, second := sha1.Sum(data), sha256.Sum256(data)
	return spdxFile{
		ID: id, Name: name, Types: []string{"BINARY"}, Concluded: "Apache-2.0", Copyright: noAssertion,
		Checksums: []spdxChecksum{ // SPDX demands the first
			{Algorithm: "SHA1", Value: hex.EncodeToString(first[:])},
			{Algorithm: "SHA256", Value: hex.EncodeToString(second[:])},
		},
	}
}
