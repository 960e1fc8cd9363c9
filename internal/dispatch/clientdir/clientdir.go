// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package clientdir keeps the directory that a dispatcher shares with its
// clients: the helper program that Nix starts, the machines file whose lines
// lead to it, and a nix.conf that names the file.
//
// Every file is replaced whole, by a temporary file and a rename, because
// clients read at any moment and half a machines file stops all their builds.
package clientdir

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"nixbuilder.io/nix-builder-operator/internal/connect"
	"nixbuilder.io/nix-builder-operator/internal/nix/machines"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
)

// Names of the files in the directory. The socket beside them is
// [connect.SocketName].
const (
	HelperName   = "nix-dispatch-connect"
	MachinesName = "machines"
	ConfName     = "nix.conf"
)

// Options configure a [Directory].
type Options struct {
	// Path is the directory as this process sees it. It must exist.
	Path string
	// ClientPath is the directory as clients see it; Path if empty.
	ClientPath string
	// Helper is the file that is copied as helper program.
	Helper string
	// MaxLines bounds the lines of the machines file, but each class has one
	// at least.
	MaxLines int
}

// Directory is the shared directory. It is safe for concurrent use.
type Directory struct {
	opts Options

	mu sync.Mutex
	// known has every class ever published: clients may still hold an older
	// machines file.
	known map[string]known
	// content is the machines file as last written.
	content []byte
}

type known struct {
	class scheduler.Class
	lines int
}

// New returns a directory without writing to it.
func New(opts Options) *Directory {
	if opts.ClientPath == "" {
		opts.ClientPath = opts.Path
	}
	return &Directory{opts: opts, known: map[string]known{}}
}

// Socket is the path of the socket that the helper connects to.
func (d *Directory) Socket() string { return filepath.Join(d.opts.Path, connect.SocketName) }

// Install writes the helper and nix.conf, both readable by everybody.
func (d *Directory) Install() error {
	if err := os.Chmod(d.opts.Path, 0o755); err != nil && !errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("prepare the directory shared with clients: %w", err)
	}
	helper, err := os.Open(d.opts.Helper)
	if err != nil {
		return fmt.Errorf("read the helper: %w", err)
	}
	defer helper.Close()
	if err := replace(filepath.Join(d.opts.Path, HelperName), helper, 0o755); err != nil {
		return fmt.Errorf("install the helper: %w", err)
	}
	conf := "# Written by nix-dispatcher. Sends builds to the dispatcher beside this file.\n" +
		"builders = @" + filepath.Join(d.opts.ClientPath, MachinesName) + "\n"
	if err := replace(filepath.Join(d.opts.Path, ConfName), strings.NewReader(conf), 0o644); err != nil {
		return fmt.Errorf("write nix.conf: %w", err)
	}
	return nil
}

// Publish writes the machines file for the classes of builders, and makes the
// classes known to Lookup. It reports whether the file has changed. A class that
// cannot be written for every Nix is left out and named in the error.
func (d *Directory) Publish(builders []scheduler.Builder) (changed bool, err error) {
	content, lines, leftOut := d.render(scheduler.Lines(builders, d.opts.MaxLines))
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, line := range lines {
		name := line.Class.Name()
		d.known[name] = known{class: line.Class, lines: max(line.Count, d.known[name].lines)}
	}
	if d.content != nil && bytes.Equal(d.content, content) {
		return false, leftOut
	}
	err = replace(filepath.Join(d.opts.Path, MachinesName), bytes.NewReader(content), 0o644)
	if err != nil {
		return false, fmt.Errorf("write the machines file for clients: %w", err)
	}
	d.content = content
	return true, leftOut
}

// Lookup returns the class that a client's line stands for. The error says
// what is wrong with the line and what to do.
func (d *Directory) Lookup(target connect.Target) (scheduler.Class, error) {
	d.mu.Lock()
	k, ok := d.known[target.Class]
	d.mu.Unlock()
	if !ok {
		return scheduler.Class{}, fmt.Errorf("the dispatcher knows no builders of class %q: the machines file that names it is out of date", target.Class)
	}
	if target.Slot < 0 || target.Slot >= k.lines {
		return scheduler.Class{}, fmt.Errorf("class %q has no slot %d, only 0 to %d: the machines file that names it is out of date", target.Class, target.Slot, k.lines-1)
	}
	return k.class, nil
}

// render gives the machines file and the lines in it. Without lines it is one
// comment: an empty list would make clients give up remote builds for the rest of
// their run.
func (d *Directory) render(all []scheduler.Line) (content []byte, lines []scheduler.Line, leftOut error) {
	for _, line := range all {
		text, err := d.renderLine(line)
		if err != nil {
			leftOut = errors.Join(leftOut, fmt.Errorf("no lines for builds of %s: %w", line.Class, err))
			continue
		}
		content = append(content, text...)
		lines = append(lines, line)
	}
	if len(content) == 0 {
		content = []byte("# nix-dispatcher knows no builders yet\n")
	}
	return content, lines, leftOut
}

// renderLine gives the lines of one class, which differ in their slot.
func (d *Directory) renderLine(line scheduler.Line) ([]byte, error) {
	var list []machines.Machine
	for slot := range line.Count {
		target := connect.Target{Class: line.Class.Name(), Slot: slot}
		if err := target.Validate(); err != nil {
			return nil, err
		}
		list = append(list, machines.Machine{
			URI: machines.StoreURI{
				// With exactly this host Nix runs the program itself instead
				// of ssh.
				Scheme: "ssh-ng",
				Host:   "localhost",
				Params: map[string]string{
					machines.ParamRemoteProgram: filepath.Join(d.opts.ClientPath, HelperName),
					machines.ParamRemoteStore:   target.String(),
				},
			},
			Systems:           []string{line.Class.System},
			MaxJobs:           1,
			SpeedFactor:       float64(line.Speed),
			SupportedFeatures: line.Class.Features,
			MandatoryFeatures: line.Class.Mandatory,
		})
	}
	return machines.Format(list)
}

// replace puts content in the place of file by a rename, so that readers see
// the old or the new one whole.
func replace(file string, content io.Reader, mode os.FileMode) error {
	temp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-*")
	if err != nil {
		return err
	}
	_, err = io.Copy(temp, content)
	err = errors.Join(err, temp.Chmod(mode), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), file)
	}
	if err != nil {
		os.Remove(temp.Name())
	}
	return err
}
