// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Names of the URI parameters that this project acts on.
const (
	ParamRemoteProgram = "remote-program"             // program that speaks the protocol on the builder
	ParamRemoteStore   = "remote-store"               // passed to that program as --store
	ParamIdentity      = "ssh-key"                    // private key, where the column is empty
	ParamHostKey       = "base64-ssh-public-host-key" // host key, where the column is empty
	ParamPort          = "port"                       // Lix's way to name a port
	defaultSSHPort     = 22                           // of a URI that names none
	hexDigits          = "0123456789ABCDEF"           // of percent escapes
	uriSafe            = "-._~/"                      // besides letters and digits, left as they are in values
)

// StoreURI is a reference to a Nix store, as the first column of a machines
// file has it.
type StoreURI struct {
	// Scheme is what precedes "://". It is empty for the references without
	// one that do not mean a host: auto, daemon, local, or a directory, which
	// are in Path then.
	Scheme string
	// User is the login name, "" for the default.
	User string
	// Host is a name or an address; IPv6 addresses are without brackets.
	Host string
	// Port is the port of the authority, 0 where it names none. See SSHPort.
	Port int
	// Path follows the authority; it begins with a slash or is empty.
	Path string
	// Params are the decoded query parameters.
	Params map[string]string
}

// SSH reports whether the URI names a builder that is reached over SSH.
func (u StoreURI) SSH() bool { return u.Scheme == "ssh" || u.Scheme == "ssh-ng" }

// SSHPort is the port that the URI asks for, in its authority or as the
// parameter that Lix reads, and 22 where it asks for none.
func (u StoreURI) SSHPort() int {
	if u.Port != 0 {
		return u.Port
	}
	if port, err := parsePort(u.Params[ParamPort]); err == nil {
		return port
	}
	return defaultSSHPort
}

// RemoteProgram is the program to run on the builder, "" for the default.
func (u StoreURI) RemoteProgram() string { return u.Params[ParamRemoteProgram] }

// RemoteStore is the store that the program is to open, "" for its default.
func (u StoreURI) RemoteStore() string { return u.Params[ParamRemoteStore] }

// String gives the URI with its parameters sorted by name, and all bytes of
// their values escaped that any release of Nix could read otherwise.
func (u StoreURI) String() string {
	var text strings.Builder
	if u.Scheme != "" {
		text.WriteString(u.Scheme)
		text.WriteString("://")
		if u.User != "" {
			text.WriteString(u.User)
			text.WriteByte('@')
		}
		if strings.Contains(u.Host, ":") {
			text.WriteString("[" + u.Host + "]")
		} else {
			text.WriteString(u.Host)
		}
		if u.Port != 0 {
			text.WriteByte(':')
			text.WriteString(strconv.Itoa(u.Port))
		}
	}
	text.WriteString(u.Path)
	separator := byte('?')
	for _, name := range slices.Sorted(maps.Keys(u.Params)) {
		text.WriteByte(separator)
		text.WriteString(name)
		text.WriteByte('=')
		writeEscaped(&text, u.Params[name])
		separator = '&'
	}
	return text.String()
}

// ParseStoreURI reads a store reference as Nix does: text without a scheme is
// the name of a host reached by ssh://, unless it has a slash or is one of
// the words auto, daemon and local.
func ParseStoreURI(text string) (StoreURI, error) {
	base, query, _ := strings.Cut(text, "?")
	params, err := parseQuery(query)
	if err != nil {
		return StoreURI{}, err
	}
	uri := StoreURI{Params: params}
	scheme, rest, hasScheme := strings.Cut(base, "://")
	switch {
	case hasScheme:
		uri.Scheme = scheme
	case base == "" || base == "auto" || base == "daemon" || base == "local" || strings.Contains(base, "/"):
		uri.Path = base
		return uri, nil
	default:
		uri.Scheme, rest = "ssh", base
	}
	if !validScheme(uri.Scheme) {
		return StoreURI{}, fmt.Errorf("%q is not the scheme of a URI", uri.Scheme)
	}
	if slash := strings.IndexByte(rest, '/'); slash >= 0 {
		rest, uri.Path = rest[:slash], rest[slash:]
	}
	if err := uri.setAuthority(rest); err != nil {
		return StoreURI{}, err
	}
	if !uri.SSH() {
		return uri, nil
	}
	return uri, uri.checkSSH()
}

// setAuthority takes apart user@host:port.
func (u *StoreURI) setAuthority(text string) error {
	if at := strings.LastIndexByte(text, '@'); at >= 0 {
		u.User, text = text[:at], text[at+1:]
	}
	port := ""
	switch {
	case strings.HasPrefix(text, "["):
		host, rest, closed := strings.Cut(text[1:], "]")
		if !closed || !strings.Contains(host, ":") || (rest != "" && rest[0] != ':') {
			return fmt.Errorf("%q is not an IPv6 address in brackets", text)
		}
		u.Host, port = host, rest
	case strings.Count(text, ":") == 1:
		colon := strings.IndexByte(text, ':')
		u.Host, port = text[:colon], text[colon:]
	default: // a name, or an IPv6 address that lacks its brackets
		u.Host = text
	}
	if port == "" {
		return nil
	}
	number, err := parsePort(port[1:])
	u.Port = number
	return err
}

// checkSSH refuses what would not reach the builder, or what ssh would take
// for an option.
func (u *StoreURI) checkSSH() error {
	if u.Host == "" {
		return fmt.Errorf("a %s:// URI must name a host", u.Scheme)
	}
	if u.Host[0] == '-' || strings.HasPrefix(u.User, "-") {
		return errors.New("neither the user nor the host may begin with a dash")
	}
	if strings.ContainsFunc(u.User+u.Host, func(r rune) bool { return r < '!' || r == 0x7f || strings.ContainsRune(`[]"'\`, r) }) {
		return fmt.Errorf("%q is not the name of a user and a host", u.User+"@"+u.Host)
	}
	if port, set := u.Params[ParamPort]; set {
		if _, err := parsePort(port); err != nil {
			return err
		}
	}
	return nil
}

func validScheme(scheme string) bool {
	return scheme != "" && isLetter(scheme[0]) && !strings.ContainsFunc(scheme, func(r rune) bool {
		return r > 0x7f || !isAlphanumeric(byte(r)) && !strings.ContainsRune("+-.", r)
	})
}

func parsePort(text string) (int, error) {
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("%q is not a port number between 1 and 65535", text)
	}
	return int(port), nil
}

// parseQuery reads name=value pairs. As in Nix, a piece without "=" is
// ignored, the first of two equal names counts, and "+" is no space.
func parseQuery(query string) (map[string]string, error) {
	var params map[string]string
	for pair := range strings.SplitSeq(query, "&") {
		name, escaped, found := strings.Cut(pair, "=")
		if !found || name == "" {
			continue
		}
		if _, exists := params[name]; exists {
			continue
		}
		value, err := unescape(escaped)
		if err != nil {
			return nil, fmt.Errorf("parameter %q: %w", name, err)
		}
		if params == nil {
			params = make(map[string]string)
		}
		params[name] = value
	}
	return params, nil
}

func unescape(text string) (string, error) {
	if !strings.Contains(text, "%") {
		return text, nil
	}
	decoded := make([]byte, 0, len(text))
	for i := 0; i < len(text); i++ {
		if text[i] != '%' {
			decoded = append(decoded, text[i])
			continue
		}
		if i+2 >= len(text) {
			return "", fmt.Errorf("%q is not a percent escape", text[i:])
		}
		value, err := strconv.ParseUint(text[i+1:i+3], 16, 8)
		if err != nil {
			return "", fmt.Errorf("%q is not a percent escape", text[i:i+3])
		}
		decoded = append(decoded, byte(value))
		i += 2
	}
	return string(decoded), nil
}

func writeEscaped(text *strings.Builder, value string) {
	for i := range len(value) {
		if c := value[i]; isAlphanumeric(c) || strings.IndexByte(uriSafe, c) >= 0 {
			text.WriteByte(c)
		} else {
			text.Write([]byte{'%', hexDigits[c>>4], hexDigits[c&15]})
		}
	}
}

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

func isAlphanumeric(c byte) bool { return isLetter(c) || '0' <= c && c <= '9' }
