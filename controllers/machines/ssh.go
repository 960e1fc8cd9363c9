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
	if e.jump == nil && e.port == sshPort && len(e.hostKeys) == 1 && len(e.authorities) == 0 {
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
	return e.name + "." + short(e.builder) + aliasDomain
}

// short stands for a name that is too long.
func short(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:8])
}

// spelled is a host as ssh spells it.
func spelled(host string) string {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.String()
	}
	return host
}

// server is what ssh_config and known_hosts say of an SSH server with an alias.
type server struct {
	alias, host           string
	port                  int
	hostKeys, authorities []string
	more                  string // further lines for ssh_config
}

// server is the endpoint's own.
func (r route) server() server {
	s := server{alias: r.alias, host: r.host, port: r.port, hostKeys: r.hostKeys, authorities: r.authorities}
	if r.jump != nil {
		s.more = "  ProxyJump " + r.jump.alias + "\n"
	}
	return s
}

// knownAs is the name under which ssh looks for the keys of a server. With
// certificates it cannot be the alias: ssh would look for the alias among the
// names that the certificate is for.
func (s server) knownAs() string {
	switch {
	case len(s.authorities) == 0:
		return s.alias
	case s.port == sshPort:
		return spelled(s.host)
	}
	return fmt.Sprintf("[%s]:%d", spelled(s.host), s.port)
}

// config is the server's part of ssh_config.
func (s server) config() string {
	text := fmt.Sprintf("\nHost %s\n  HostName %s\n  Port %d\n", s.alias, spelled(s.host), s.port)
	if len(s.authorities) == 0 {
		text += "  HostKeyAlias " + s.alias + "\n"
	}
	return text + s.more + "  UserKnownHostsFile " + MountPath + "/" + KeyKnownHosts + "\n" +
		"  GlobalKnownHostsFile /dev/null\n  CheckHostIP no\n" + commonOptions
}

// known are the server's lines of known_hosts.
func (s server) known() []string {
	var lines []string
	for _, key := range s.hostKeys {
		lines = append(lines, s.knownAs()+" "+key+"\n")
	}
	for _, key := range s.authorities {
		lines = append(lines, "@cert-authority "+s.knownAs()+" "+key+"\n")
	}
	return lines
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
			fmt.Fprintf(&text, "\nHost %s\n%s", r.host, commonOptions)
		} else {
			text.WriteString(r.server().config())
		}
	}
	for _, s := range jumpServers(routes) {
		text.WriteString(s.config())
	}
	return text.String()
}

// knownHosts has the keys and authorities of endpoints with an alias, and of jump
// hosts; those of others are in the machines file.
func knownHosts(routes []route) string {
	var lines []string
	for _, r := range routes {
		if r.alias != "" {
			lines = append(lines, r.server().known()...)
		}
	}
	for _, s := range jumpServers(routes) {
		lines = append(lines, s.known()...)
	}
	slices.Sort(lines)
	return "# Host keys of the aliases in " + KeySSHConfig + "\n" + strings.Join(slices.Compact(lines), "")
}
