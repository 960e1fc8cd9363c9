// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package figures

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"time"
)

// Machine is where the benchmark ran.
type Machine struct {
	CPU       string `json:"cpu"`
	Cores     int    `json:"cores"`
	MemoryMiB int    `json:"memory_mib"`
	Kernel    string `json:"kernel"`
	// Congestion is the kernel's way to avoid congestion of TCP connections.
	Congestion string `json:"tcp_congestion_control"`
}

// Section is a part of the benchmark that was run.
type Section struct {
	Date time.Time `json:"date"`
	// Load is as that of the document, so it is also that of sections before.
	Load    float64 `json:"load_at_start"`
	Seconds float64 `json:"seconds"`
}

// Document is bench.json. Figures are computed from the series when it is written.
type Document struct {
	// Commit is the last one that changed what is measured, or how; "-modified" is
	// behind it where the tree had other changes.
	Commit string    `json:"commit"`
	Date   time.Time `json:"date"`
	// Load is the machine's load average of the last minute before the start.
	Load    float64 `json:"load_at_start"`
	Machine Machine `json:"machine"`
	// Versions of programs by name, and of every Nix by Debian suite.
	Versions map[string]string  `json:"versions"`
	Sections map[string]Section `json:"sections"`
	// Lines has the round-trip times that were seen, in milliseconds.
	Lines map[string]float64 `json:"lines_rtt_ms"`
	// KillsPerPhase is from the chaos test.
	KillsPerPhase map[string]int `json:"kills_per_phase,omitempty"`
	Series        Series         `json:"series"`
}

// MarshalJSON puts the figures beside the other fields, by their names.
func (d Document) MarshalJSON() ([]byte, error) {
	type bare Document // without this method
	head := d
	head.Series = nil
	headJSON, err := json.Marshal(bare(head))
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	out.Write(bytes.TrimSuffix(headJSON, []byte(`,"series":null}`)))
	figures := Compute(d.Series)
	for _, spec := range Specs() {
		figure, ok := figures[spec.Name]
		if !ok {
			continue
		}
		text, err := json.Marshal(figure)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&out, ",%q:%s", spec.Name, text)
	}
	series, err := json.Marshal(d.Series)
	fmt.Fprintf(&out, `,"series":%s}`, series)
	return out.Bytes(), err
}

// Load reads a document; nil without an error if there is none.
func Load(path string) (*Document, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var d Document
	if err := json.Unmarshal(text, &d); err != nil {
		return nil, fmt.Errorf("%s: %w (remove it to begin anew)", path, err)
	}
	return &d, nil
}

// Save writes the document.
func (d Document) Save(path string) error {
	text, err := json.Marshal(d)
	if err != nil {
		return err
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, text, "", "  "); err != nil {
		return err
	}
	return os.WriteFile(path, append(compactArrays(indented.Bytes()), '\n'), 0o644)
}

// Comparable tells why measurements of two documents cannot be put together; nil
// means that they can.
func (d Document) Comparable(newer Document) error {
	switch {
	case d.Commit != newer.Commit:
		return fmt.Errorf("it is of commit %s, this run of %s", d.Commit, newer.Commit)
	case !reflect.DeepEqual(d.Machine, newer.Machine):
		return errors.New("it is of another machine")
	}
	return nil
}

// Merge returns a document with the measurements of both; newer replaces what it
// measured again.
func (d Document) Merge(newer Document) Document {
	merged := newer
	merged.Versions = union(d.Versions, newer.Versions)
	merged.Sections = union(d.Sections, newer.Sections)
	merged.Lines = union(d.Lines, newer.Lines)
	if newer.KillsPerPhase == nil {
		merged.KillsPerPhase = d.KillsPerPhase
	}
	merged.Series = d.Series.Merge(newer.Series)
	return merged
}

func union[V any](older, newer map[string]V) map[string]V {
	all := map[string]V{}
	maps.Copy(all, older)
	maps.Copy(all, newer)
	return all
}

// compactArrays puts arrays of numbers on one line each.
func compactArrays(text []byte) []byte {
	var out bytes.Buffer
	inArray := false
	for line := range bytes.Lines(text) {
		trimmed := bytes.TrimSpace(line)
		switch {
		case bytes.HasSuffix(trimmed, []byte("[")):
			inArray = true
			out.Write(bytes.TrimRight(line, "\n"))
		case inArray && bytes.HasPrefix(trimmed, []byte("]")):
			inArray = false
			out.Write(trimmed)
			out.WriteByte('\n')
		case inArray:
			out.Write(bytes.ReplaceAll(trimmed, []byte(","), []byte(", ")))
		default:
			out.Write(line)
		}
	}
	return out.Bytes()
}
