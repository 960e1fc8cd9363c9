// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

const (
	// maxFileName is the longest name that Linux and macOS file systems take.
	maxFileName = 255
	// uploadLock ends the name of the file by which clients of one machine
	// take turns in uploading.
	uploadLock = ".upload-lock"
	// maxSpeedFactor is the last whole number before the single precision
	// that Nix computes with has gaps.
	maxSpeedFactor = 1 << 24
)

// FormatError says which machine cannot be written so that every release of
// Nix reads it, and why.
type FormatError struct {
	// Index is the place in the list given to Format.
	Index int
	// URI is the machine's, as far as it can be written.
	URI string
	// Err is the reason.
	Err error
}

// Error gives machine and reason.
func (e *FormatError) Error() string {
	return fmt.Sprintf("machine %d (%s) cannot be written for every Nix: %v", e.Index+1, e.URI, e.Err)
}

// Unwrap returns the reason.
func (e *FormatError) Unwrap() error { return e.Err }

// Format writes one line per machine, in the order given, each with eight
// columns separated by single spaces. Every supported Nix and Lix reads the
// result in the same way; a machine for which that is impossible is an error
// of type *FormatError.
//
// Not representable are: schemes other than ssh and ssh-ng (Nix does not
// bring the results of others back), ports and IPv6 addresses in the URI (Nix
// before 2.31 hands them to ssh as a host name: use an alias of ssh_config),
// fractional speed factors (Nix before 2.20), no jobs (clients wait for ever),
// lists with separators or comment signs inside, and URIs too long to name the
// lock file of a job slot.
func Format(list []Machine) ([]byte, error) {
	var text bytes.Buffer
	for i, machine := range list {
		columns, err := machine.columns()
		if err != nil {
			return nil, &FormatError{Index: i, URI: machine.URI.String(), Err: err}
		}
		text.WriteString(strings.Join(columns[:], " "))
		text.WriteByte('\n')
	}
	return text.Bytes(), nil
}

// columns gives the text of each column, or why one cannot be written.
func (m Machine) columns() ([columnCount]string, error) {
	var columns [columnCount]string
	if err := m.URI.checkPortable(); err != nil {
		return columns, err
	}
	if err := m.checkNumbers(); err != nil {
		return columns, err
	}
	columns[columnURI] = m.URI.String()
	columns[columnMaxJobs] = strconv.Itoa(m.MaxJobs)
	columns[columnSpeedFactor] = strconv.FormatInt(int64(m.SpeedFactor), 10)
	longest := len(columns[columnURI]) + max(len(uploadLock), len("-")+len(strconv.Itoa(m.MaxJobs-1)))
	if longest > maxFileName {
		return columns, fmt.Errorf("the URI is %d bytes too long to name a lock file", longest-maxFileName)
	}
	var err error
	if columns[columnIdentity], err = word("identity file", m.Identity, ""); err != nil {
		return columns, err
	}
	if columns[columnSystems], err = joinList(m.Systems); err != nil {
		return columns, err
	}
	if columns[columnSystems] == "=" {
		return columns, errors.New(`the system "=" looks like the TOML form of the file`)
	}
	if columns[columnSupportedFeatures], err = joinList(m.SupportedFeatures); err != nil {
		return columns, err
	}
	if columns[columnMandatoryFeatures], err = joinList(m.MandatoryFeatures); err != nil {
		return columns, err
	}
	columns[columnHostKey] = absent
	if m.HostKey != "" {
		if err := CheckHostKey(m.HostKey); err != nil {
			return columns, err
		}
		columns[columnHostKey] = base64.StdEncoding.EncodeToString([]byte(m.HostKey))
	}
	return columns, nil
}

func (m Machine) checkNumbers() error {
	if m.MaxJobs < 1 || m.MaxJobs > math.MaxInt32 {
		return fmt.Errorf("%d jobs: a machine needs at least 1, or clients wait for it for ever", m.MaxJobs)
	}
	if m.SpeedFactor < 1 || m.SpeedFactor > maxSpeedFactor || m.SpeedFactor != math.Trunc(m.SpeedFactor) {
		return fmt.Errorf("speed factor %v: Nix before 2.20 reads whole numbers only; from 1 to %d is possible",
			m.SpeedFactor, maxSpeedFactor)
	}
	return nil
}

func (u StoreURI) checkPortable() error {
	switch {
	case !u.SSH():
		return fmt.Errorf("scheme %q: only ssh and ssh-ng bring results back from another machine", u.Scheme)
	case u.Path != "":
		return fmt.Errorf("the URI has the path %q, which is read as part of the host", u.Path)
	case u.SSHPort() != defaultSSHPort || u.Port != 0:
		return fmt.Errorf("port %d: Nix before 2.31 takes no port; use an alias of ssh_config", u.SSHPort())
	case !plainName(u.Host):
		return fmt.Errorf("host %q is not a plain host name; use an alias of ssh_config", u.Host)
	case u.User != "" && !plainName(u.User):
		return fmt.Errorf("user %q is not a plain user name", u.User)
	}
	for name, value := range u.Params {
		if !plainName(name) {
			return fmt.Errorf("%q is not the name of a URI parameter", name)
		}
		if !printable(value) {
			return fmt.Errorf("the value of parameter %q is not printable ASCII text", name)
		}
	}
	return nil
}

// plainName reports whether the text needs no escaping in any place of a URI.
func plainName(text string) bool {
	return text != "" && text[0] != '-' && !strings.ContainsFunc(text, func(r rune) bool {
		return r > 0x7f || !isAlphanumeric(byte(r)) && !strings.ContainsRune("-._", r)
	})
}

// printable reports whether the text is ASCII without control characters.
func printable(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r >= 0x7f })
}

// word checks a column's text; besides what separates columns and machines it
// may not contain forbidden.
func word(what, text, forbidden string) (string, error) {
	switch {
	case text == "":
		return absent, nil
	case text == absent:
		return "", fmt.Errorf(`%s "-" would be read as none`, what)
	case !printable(text) || strings.ContainsAny(text, " ;#"+forbidden):
		return "", fmt.Errorf("%s %q has characters that separate columns or machines", what, text)
	}
	return text, nil
}

func joinList(list []string) (string, error) {
	for _, element := range list {
		if element == "" {
			return "", errors.New("a list of systems or features has an empty element")
		}
		if _, err := word("system or feature", element, ","); err != nil {
			return "", err
		}
	}
	if len(list) == 0 {
		return absent, nil
	}
	return strings.Join(list, ","), nil
}

// CheckHostKey reports whether the text is one line of a public host key:
// the name of its type, the key in base64, and maybe a comment. The key is
// only checked to begin with the name of the type.
func CheckHostKey(line string) error {
	if !printable(line) || strings.HasSuffix(line, " ") {
		return errors.New("host key: not one line of printable text, or followed by blanks")
	}
	kind, rest, _ := strings.Cut(line, " ")
	encoded, _, _ := strings.Cut(rest, " ")
	blob, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || len(blob) < 4 {
		return fmt.Errorf("host key: %q is not followed by a key in base64; a line such as ssh-ed25519 AAAA… is needed", cut(kind))
	}
	length := binary.BigEndian.Uint32(blob)
	if uint64(length) > uint64(len(blob)-4) || string(blob[4:4+length]) != kind {
		return fmt.Errorf("host key: the key is not of the type %q that precedes it", cut(kind))
	}
	return nil
}

// cut shortens a text that may be anything, even a key pasted into the wrong
// place, for use in a message.
func cut(text string) string {
	const enough = 24
	if len(text) > enough {
		return text[:enough] + "…"
	}
	return text
}
