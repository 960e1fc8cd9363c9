// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"cmp"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/inventory"
)

// jumpDomain ends the aliases of jump hosts. No alias of an endpoint ends so.
const jumpDomain = ".nixbuilder-jump"

// jump is the jump host of a NixBuilder, through which all its machines are reached.
type jump struct {
	alias string
	inventory.Jump
}

// newJump returns nil where there is none.
func newJump(builder *v1alpha1.NixBuilder) *jump {
	given := builder.Spec.ProxyJump
	if given == nil {
		return nil
	}
	j := &jump{alias: builder.Name + jumpDomain, Jump: inventory.Jump{
		Host:                   given.Host,
		Port:                   int(cmp.Or(given.Port, sshPort)),
		User:                   cmp.Or(given.User, builder.Spec.User),
		HostKeys:               keys(given.HostKeys),
		CertificateAuthorities: keys(given.HostCertificateAuthorities),
	}}
	if len(j.alias) > maxAlias {
		j.alias = short(builder.Name) + jumpDomain
	}
	credentials := &builder.Spec.Credentials
	if given.Credentials != nil {
		credentials = given.Credentials
	}
	for _, reference := range credentials.SecretRefs {
		j.Credentials = append(j.Credentials, reference.Name)
	}
	return j
}

// listed is the jump host as dispatchers are told of it.
func (j *jump) listed() *inventory.Jump {
	if j == nil {
		return nil
	}
	return &j.Jump
}

// server is the jump host's part of ssh_config. Its keys have to be named there: Nix
// gives ssh that of the machine only.
func (j *jump) server() server {
	s := server{alias: j.alias, host: j.Host, port: j.Port, hostKeys: j.HostKeys, authorities: j.CertificateAuthorities}
	s.more = "  User " + j.User + "\n"
	for _, secret := range j.Credentials {
		s.more += "  IdentityFile " + KeysPath + "/" + secret + "/ssh-privatekey\n"
	}
	return s
}

// jumpServers lists the jump hosts of all routes, one for each NixBuilder that has one:
// routes are sorted by builder.
func jumpServers(routes []route) []server {
	var list []server
	for _, r := range routes {
		if r.jump != nil && (len(list) == 0 || list[len(list)-1].alias != r.jump.alias) {
			list = append(list, r.jump.server())
		}
	}
	return list
}
