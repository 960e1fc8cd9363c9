// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/internal/nix/machines"
)

// nobody is the machines file where no endpoint has a line. An empty file
// would do, but not explain itself.
const nobody = "# No builder is listed now: each is cordoned, not accepted, was never healthy, has a full disk, or lacks a verified host key, valid credentials or a mandatory feature: kubectl get nixbuilders says why\n"

// nixConf is what a client includes. It leaves builders-use-substitutes at
// its default, false: a builder without access to a binary cache would wait
// for it in every build.
const nixConf = "# For the nix.conf of a client: include " + MountPath + "/" + KeyNixConf + "\n" +
	"builders = @" + MountPath + "/" + KeyMachines + "\n"

// ErrTooLarge means that the NixBuilders of a namespace do not fit into a
// ConfigMap.
var ErrTooLarge = fmt.Errorf("the builders of the namespace need more than %d KiB", MaxContentSize>>10)

// Content is what a ConfigMap is to have.
type Content struct {
	// Data are the keys with their text.
	Data map[string]string
	// Lines is the number of lines in the machines file.
	Lines int
	// Unlisted are endpoints that would be in the machines file if a line
	// could be written for them, with the reason.
	Unlisted []error
	// Expires is when the content changes without anybody's doing, because a
	// cordon ends. It is zero where none does.
	Expires time.Time
}

// Desired renders the NixBuilders of one namespace as they are at a time. The
// order of the builders, and of lists that mean sets, does not matter. The
// error is ErrTooLarge where the content does not fit; any other is a mistake
// of this program.
func Desired(builders []v1alpha1.NixBuilder, now time.Time) (*Content, error) {
	all := endpoints(builders, now)
	content := &Content{Expires: nextExpiry(builders, now)}
	file, err := content.machinesFile(listed(all))
	if err != nil {
		return nil, err
	}
	document, err := inventory.Encode(document(all))
	if errors.Is(err, inventory.ErrTooLarge) {
		return nil, ErrTooLarge
	}
	if err != nil {
		return nil, err
	}
	routes := make([]route, len(all))
	for i := range all {
		routes[i] = newRoute(&all[i])
	}
	content.Data = map[string]string{
		KeyMachines:   file,
		KeyBuilders:   string(document),
		KeyKnownHosts: knownHosts(routes),
		KeySSHConfig:  sshConfig(routes),
		KeyNixConf:    nixConf,
	}
	if content.Size() > MaxContentSize {
		return nil, ErrTooLarge
	}
	return content, nil
}

// Size is the number of bytes of all keys and values.
func (c *Content) Size() int {
	size := 0
	for key, text := range c.Data {
		size += len(key) + len(text)
	}
	return size
}

// machinesFile writes the machines file and reads it back, since a single bad
// line would stop every build of every client.
func (c *Content) machinesFile(list []listing) (string, error) {
	var lines []machines.Machine
	for _, l := range list {
		r := newRoute(l.endpoint)
		if r.problem != nil {
			c.Unlisted = append(c.Unlisted, fmt.Errorf("endpoint %s of NixBuilder %s: %w", l.name, l.builder, r.problem))
			continue
		}
		r.machine.Systems = l.systems
		lines = append(lines, r.machine)
	}
	c.Lines = len(lines)
	text, err := machines.Format(lines)
	if err != nil {
		return "", fmt.Errorf("write the machines file: %w", err)
	}
	if len(lines) == 0 {
		text = []byte(nobody)
	}
	read, err := machines.ParsePortable(KeyMachines, text)
	if err != nil {
		return "", fmt.Errorf("read back the machines file: %w", err)
	}
	again, err := machines.Format(read)
	if err != nil {
		return "", fmt.Errorf("write the machines file again: %w", err)
	}
	if len(lines) > 0 && !bytes.Equal(text, again) {
		return "", errors.New("the machines file does not read as it was written")
	}
	return string(text), nil
}

// document lists every endpoint. Messages are left out: their words change
// more often than what they are about.
func document(all []endpoint) inventory.Document {
	var list inventory.Document
	for i := range all {
		e := &all[i]
		next := inventory.Endpoint{
			Builder:                e.builder,
			Name:                   e.name,
			Host:                   e.host,
			Port:                   e.port,
			User:                   e.user,
			HostKeys:               e.hostKeys,
			CertificateAuthorities: e.authorities,
			Credentials:            e.secrets,
			Jump:                   e.jump.listed(),
			RemoteProgram:          e.program,
			Systems:                e.systems,
			SupportedFeatures:      e.features,
			MandatoryFeatures:      e.mandatory,
			Slots:                  e.jobs,
			SpeedFactor:            e.speed,
			State:                  inventory.State(e.state.State),
			Reason:                 e.state.Reason,
		}
		if since := e.state.LastTransitionTime; since != nil {
			next.Since = since.Time
		}
		if e.cordon != nil {
			next.Cordon = &inventory.Cordon{Reason: e.cordon.Reason}
			if until := e.cordon.Until; until != nil {
				next.Cordon.Until = &until.Time
			}
		}
		list.Builders = append(list.Builders, next)
	}
	return list
}

// nextExpiry is the next end of a cordon.
func nextExpiry(builders []v1alpha1.NixBuilder, now time.Time) time.Time {
	var next time.Time
	consider := func(cordon *v1alpha1.Cordon) {
		if cordon.ActiveAt(now) && cordon.Until != nil && (next.IsZero() || cordon.Until.Time.Before(next)) {
			next = cordon.Until.Time
		}
	}
	for i := range builders {
		if !accepted(&builders[i]) {
			continue
		}
		consider(builders[i].Spec.Cordon)
		for j := range builders[i].Spec.Endpoints {
			consider(builders[i].Spec.Endpoints[j].Cordon)
		}
	}
	return next
}
