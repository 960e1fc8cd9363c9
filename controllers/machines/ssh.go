// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"nixbuilder.io/nix-builder-operator/internal/nix/machines"
)

const (
	// aliasDomain ends the names that only our ssh_config resolves.
	aliasDomain = ".nixbuilder"
	// maxAlias is the longest alias: clients name lock files after the URI.
	maxAlias = 100
	sshPort  = 22
)

// route is how a client's own ssh gets to an endpoint.
type route struct {
	*endpoint
	// alias is the host in the URI, to be resolved by ssh_config. It is empty
	// for an endpoint whose line says all itself: the host, on the standard
	// port, and its only key.
	alias string
	// machine is the line, with all systems of the endpoint.
	machine machines.Machine
	// problem says why there can be no line.
	problem error
}

// newRoute prefers the line that needs no ssh_config.
func newRoute(e *endpoint) route {
	machine := machines.Machine{
		URI:               machines.StoreURI{Scheme: "ssh-ng", User: e.user, Host: e.host},
		Systems:           e.systems,
		Identity:          KeysPath + "/" + e.secret + "/ssh-privatekey",
		MaxJobs:           e.jobs,
		SpeedFactor:       float64(e.speed),
		SupportedFeatures: e.features,
		MandatoryFeatures: e.mandatory,
	}
	if e.program != "" {
		machine.URI.Params = map[string]string{machines.ParamRemoteProgram: e.program}
	}
	if e.port == sshPort && len(e.hostKeys) == 1 && len(e.authorities) == 0 {
		plain := machine
		plain.HostKey = e.hostKeys[0]
		if _, err := machines.Format([]machines.Machine{plain}); err == nil {
			return route{endpoint: e, machine: plain}
		}
	}
	r := route{endpoint: e, alias: e.alias(), machine: machine}
	r.machine.URI.Host = r.alias
	_, r.problem = machines.Format([]machines.Machine{r.machine})
	return r
}

// alias is a host name that is the endpoint's alone in its namespace. The
// name of an endpoint has no dot.
func (e *endpoint) alias() string {
	alias := e.name + "." + e.builder + aliasDomain
	if len(alias) <= maxAlias {
		return alias
	}
	sum := sha256.Sum256([]byte(e.builder))
	return e.name + "." + hex.EncodeToString(sum[:8]) + aliasDomain
}

// address is the host as ssh spells it.
func (e *endpoint) address() string {
	if ip, err := netip.ParseAddr(e.host); err == nil {
		return ip.String()
	}
	return e.host
}

// knownAs is the name under which ssh looks for the keys of an aliased
// endpoint. With certificates it cannot be the alias: ssh would look for the
// alias among the names that the certificate is for.
func (r route) knownAs() string {
	switch {
	case len(r.authorities) == 0:
		return r.alias
	case r.port == sshPort:
		return r.address()
	}
	return fmt.Sprintf("[%s]:%d", r.address(), r.port)
}

// commonOptions keep ssh from asking questions and from waiting for ever for
// a machine that is gone.
const commonOptions = `  StrictHostKeyChecking yes
  UpdateHostKeys no
  BatchMode yes
  IdentitiesOnly yes
  ConnectTimeout 10
  ServerAliveInterval 15
  ServerAliveCountMax 3
`

// sshConfig resolves aliases. Endpoints without one get the options only.
func sshConfig(routes []route) string {
	var text strings.Builder
	text.WriteString("# For the ssh of Nix: NIX_SSHOPTS=\"-F " + MountPath + "/" + KeySSHConfig + "\"\n")
	for _, r := range routes {
		if r.alias == "" {
			fmt.Fprintf(&text, "\nHost %s\n", r.host)
		} else {
			fmt.Fprintf(&text, "\nHost %s\n  HostName %s\n  Port %d\n", r.alias, r.address(), r.port)
			if len(r.authorities) == 0 {
				fmt.Fprintf(&text, "  HostKeyAlias %s\n", r.alias)
			}
			text.WriteString("  UserKnownHostsFile " + MountPath + "/" + KeyKnownHosts + "\n")
			text.WriteString("  GlobalKnownHostsFile /dev/null\n  CheckHostIP no\n")
		}
		text.WriteString(commonOptions)
	}
	return text.String()
}

// knownHosts has the keys and authorities of endpoints with an alias; those of
// others are in the machines file.
func knownHosts(routes []route) string {
	var lines []string
	for _, r := range routes {
		if r.alias == "" {
			continue
		}
		for _, key := range r.hostKeys {
			lines = append(lines, r.knownAs()+" "+key+"\n")
		}
		for _, key := range r.authorities {
			lines = append(lines, "@cert-authority "+r.knownAs()+" "+key+"\n")
		}
	}
	slices.Sort(lines)
	return "# Host keys of the aliases in " + KeySSHConfig + "\n" + strings.Join(lines, "")
}
