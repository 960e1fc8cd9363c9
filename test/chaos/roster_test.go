// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chaos

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"

	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

const (
	// builderObject and secret are names in the builders file.
	builderObject = "chaos"
	secret        = "builder-key"
)

// roster is the builders file, as an operator would write it, and changes of it.
type roster struct {
	file, keys string

	mu        sync.Mutex
	endpoints []inventory.Endpoint
	gone      map[string]bool
}

func newRoster(dir string, clientKey string) (*roster, error) {
	r := &roster{file: filepath.Join(dir, "builders.json"), keys: filepath.Join(dir, "keys"), gone: map[string]bool{}}
	key, err := os.ReadFile(clientKey)
	if err != nil {
		return nil, err
	}
	place := filepath.Join(r.keys, secret)
	return r, errors.Join(os.MkdirAll(place, 0o700), os.WriteFile(filepath.Join(place, "ssh-privatekey"), key, 0o600))
}

// add puts a builder on the list.
func (r *roster) add(b *builder, slots int) {
	r.endpoints = append(r.endpoints, inventory.Endpoint{
		Builder: builderObject, Name: b.Name(), Host: b.wire.address(), Port: 22, User: nixlab.TrustedUser,
		HostKeys: []string{b.HostKey()}, Credentials: []string{secret},
		Systems: []string{nixlab.System()}, Slots: slots, SpeedFactor: 1, State: inventory.StateHealthy,
	})
}

// write replaces the file with the list as it is.
func (r *roster) write() error {
	document := inventory.Document{SchemaVersion: inventory.SchemaVersion}
	for _, endpoint := range r.endpoints {
		if !r.gone[endpoint.Name] {
			document.Builders = append(document.Builders, endpoint)
		}
	}
	// Not inventory.Encode: that would restore the order.
	text, err := json.Marshal(document)
	if err != nil {
		return err
	}
	return r.replace(text)
}

func (r *roster) replace(text []byte) error {
	if err := os.WriteFile(r.file+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(r.file+".new", r.file)
}

// change changes the entry of a builder.
func (r *roster) change(name string, f func(*inventory.Endpoint)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.endpoints {
		if r.endpoints[i].Name == name {
			f(&r.endpoints[i])
			return r.write()
		}
	}
	return fmt.Errorf("no builder %s in the list", name)
}

// cordon takes a builder out of use; an empty reason ends that.
func (r *roster) cordon(name, reason string) error {
	return r.change(name, func(e *inventory.Endpoint) {
		e.Cordon = nil
		if reason != "" {
			e.Cordon = &inventory.Cordon{Reason: reason}
		}
	})
}

// drop takes a builder off the list, or puts it back.
func (r *roster) drop(name string, gone bool) error {
	return r.change(name, func(*inventory.Endpoint) { r.gone[name] = gone })
}

// shuffle changes the order of the list.
func (r *roster) shuffle(random *rand.Rand) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	random.Shuffle(len(r.endpoints), func(i, j int) { r.endpoints[i], r.endpoints[j] = r.endpoints[j], r.endpoints[i] })
	return r.write()
}

// spoil writes half of the list, which nobody can read.
func (r *roster) spoil() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	text, err := os.ReadFile(r.file)
	if err != nil {
		return err
	}
	return r.replace(text[:len(text)/2])
}

// restore writes the whole list again.
func (r *roster) restore() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.write()
}
