// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"errors"
	"strconv"
	"strings"

	"nixbuilder.io/nix-builder-operator/internal/connect"
)

// call is what the command line asks for.
type call struct {
	target connect.Target
	socket string // empty unless given
}

// parseCall reads Nix's arguments in any order. An argument that it does not
// know is an error: Nix cannot add one without breaking with its own older
// daemons, so it comes from a line written by hand.
func parseCall(args []string) (call, error) {
	var (
		c            call
		store        string
		stdio, serve bool
	)
	for i := 0; i < len(args); i++ {
		name, value, inline := strings.Cut(args[i], "=")
		switch name {
		case "--stdio":
			stdio = true
		case "--serve", "--write":
			serve = true
		case "--store", "--socket":
			if !inline {
				i++
				if i == len(args) {
					return call{}, errors.New(name + " has no value")
				}
				value = args[i]
			}
			if name == "--store" {
				store = value
			} else {
				c.socket = value
			}
		default:
			return call{}, errors.New("unexpected argument " + strconv.Quote(args[i]) + usage)
		}
	}
	switch {
	case serve:
		return call{}, errors.New("the builder line begins with ssh://, whose protocol the dispatcher does not speak: begin it with ssh-ng://localhost, or use the machines file that the dispatcher writes")
	case !stdio:
		return call{}, errors.New("--stdio is missing" + usage)
	case store == "":
		return call{}, errors.New("--store is missing: the builder line needs remote-store=<class>.<slot>; use the lines of the machines file that the dispatcher writes")
	}
	target, err := connect.ParseTarget(store)
	if err != nil {
		return call{}, errors.New("--store " + err.Error() + "; use the lines of the machines file that the dispatcher writes")
	}
	c.target = target
	return c, nil
}

const usage = ": Nix calls this program for a builder line, as --stdio --store <class>.<slot>; it is not meant to be run by hand"
