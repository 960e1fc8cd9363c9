// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package connect

import (
	"errors"
	"io"
	"strconv"
)

const (
	// Version is the header version that Append writes and Decode reads.
	Version = 1
	// MaxBody bounds what Decode allocates for a body, in bytes.
	MaxBody = 1024
	// MaxReason bounds the answer to an inquiry, in bytes.
	MaxReason = 4096
	// SocketName is the dispatcher's socket in the directory it shares with the
	// client, where the helper lies too.
	SocketName = "dispatch.sock"

	magic      = "nxbC"
	prefixSize = len(magic) + 4
	fixedBody  = 35 // the body up to and without the class

	// flagInquiry is a bit of the byte after the version.
	flagInquiry = 1
)

// Process is a process as seen from the helper: its id, and its start time
// because ids are used again. The zero value means it could not be learned.
type Process struct {
	// PID is the process id in the helper's pid namespace.
	PID uint32
	// StartTime is in clock ticks since boot, as in field 22 of
	// /proc/<pid>/stat.
	StartTime uint64
}

// Key tells processes of different containers apart. It is comparable.
type Key struct {
	// Namespace is the inode of the pid namespace; 0 means unknown.
	Namespace uint64
	Process
}

// Header is what the helper says before the stream of Nix begins.
type Header struct {
	Target
	// Namespace is the inode of the pid namespace of Hook and Client.
	Namespace uint64
	// Hook is the parent of the helper: the Nix build hook. It serves one
	// derivation, and every connection for that derivation has the same one.
	Hook Process
	// Client is the parent of Hook: the nix command, or the nix-daemon process
	// that serves it. All derivations of one nix invocation share it.
	Client Process
	// Inquiry is set on a connection that carries no stream: it asks why the
	// dispatcher has ended the hook's last one, where Nix could not be told. The
	// answer is text of at most MaxReason bytes, none if there is no reason.
	Inquiry bool
}

// HookKey identifies the connections that serve one derivation.
func (h Header) HookKey() Key { return Key{Namespace: h.Namespace, Process: h.Hook} }

// ClientKey identifies the connections of one nix invocation.
func (h Header) ClientKey() Key { return Key{Namespace: h.Namespace, Process: h.Client} }

// VersionError is a header of a version that this end does not know.
type VersionError struct {
	// Got is the version the peer sent.
	Got uint8
}

func (e *VersionError) Error() string {
	return "dispatch header: the helper speaks version " + strconv.Itoa(int(e.Got)) + " and this dispatcher version " +
		strconv.Itoa(Version) + ": both have to come from the same release"
}

// FormatError is a header that is none, or makes no sense.
type FormatError struct {
	text string
}

func (e *FormatError) Error() string { return "dispatch header: " + e.text }

// Append adds the encoded header to dst. It fails, and leaves dst as it is,
// when the target is not valid.
func (h Header) Append(dst []byte) ([]byte, error) {
	if err := h.Validate(); err != nil {
		return dst, errors.New("dispatch header: " + err.Error())
	}
	body := fixedBody + len(h.Class)
	dst = append(dst, magic...)
	flags := byte(0)
	if h.Inquiry {
		flags |= flagInquiry
	}
	dst = append(dst, Version, flags)
	dst = appendUint(dst, uint64(body), 2)
	dst = appendUint(dst, h.Namespace, 8)
	for _, p := range []Process{h.Hook, h.Client} {
		dst = appendUint(dst, uint64(p.PID), 4)
		dst = appendUint(dst, p.StartTime, 8)
	}
	dst = appendUint(dst, uint64(h.Slot), 2)
	dst = append(dst, byte(len(h.Class)))
	return append(dst, h.Class...), nil
}

// Decode reads exactly one header, not a byte more. The caller sets the
// deadline. A peer that closes before it says anything, as a probe of the
// socket does, gives io.EOF; one that stops half-way io.ErrUnexpectedEOF; one
// of another version a *VersionError; one that says something else a
// *FormatError.
func Decode(r io.Reader) (Header, error) {
	var prefix [prefixSize]byte
	if n, err := io.ReadFull(r, prefix[:]); err != nil {
		if n == 0 && errors.Is(err, io.EOF) {
			return Header{}, io.EOF
		}
		return Header{}, &readError{what: "prefix", err: err}
	}
	if string(prefix[:len(magic)]) != magic {
		return Header{}, &FormatError{"it begins with " + strconv.Quote(string(prefix[:len(magic)])) +
			" and not with " + strconv.Quote(magic) + ": something other than nix-dispatch-connect uses the socket"}
	}
	if v := prefix[len(magic)]; v != Version {
		return Header{}, &VersionError{Got: v}
	}
	size := int(readUint(prefix[len(magic)+2:], 2))
	if size < fixedBody || size > MaxBody {
		return Header{}, &FormatError{"a body of " + strconv.Itoa(size) + " bytes is not within " +
			strconv.Itoa(fixedBody) + " and " + strconv.Itoa(MaxBody)}
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Header{}, &readError{what: "body", err: err}
	}
	h, err := parseBody(body)
	h.Inquiry = prefix[len(magic)+1]&flagInquiry != 0
	return h, err
}

// parseBody reads a body of at least fixedBody bytes.
func parseBody(body []byte) (Header, error) {
	h := Header{
		Namespace: readUint(body[0:], 8),
		Hook:      Process{PID: uint32(readUint(body[8:], 4)), StartTime: readUint(body[12:], 8)},
		Client:    Process{PID: uint32(readUint(body[20:], 4)), StartTime: readUint(body[24:], 8)},
	}
	h.Slot = int(readUint(body[32:], 2))
	class := body[fixedBody:]
	length := int(body[fixedBody-1])
	if length > len(class) {
		return Header{}, &FormatError{"the class has " + strconv.Itoa(length) + " bytes but only " +
			strconv.Itoa(len(class)) + " are left"}
	}
	h.Class = string(class[:length])
	if err := h.Validate(); err != nil {
		return Header{}, &FormatError{err.Error()}
	}
	return h, nil
}

// readError is a header cut short; it unwraps to the read's own error.
type readError struct {
	what string
	err  error
}

func (e *readError) Error() string {
	return "dispatch header: read " + e.what + ": " + e.err.Error()
}

func (e *readError) Unwrap() error { return e.err }

func appendUint(dst []byte, v uint64, size int) []byte {
	for range size {
		dst = append(dst, byte(v))
		v >>= 8
	}
	return dst
}

func readUint(b []byte, size int) uint64 {
	var v uint64
	for i := size - 1; i >= 0; i-- {
		v = v<<8 | uint64(b[i])
	}
	return v
}
