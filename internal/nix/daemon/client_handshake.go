// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

const (
	// maxPreamble is how much of a text in place of the handshake is shown.
	maxPreamble = 64
	// preambleWait is how long we wait for the rest of its line.
	preambleWait = time.Second
)

// NewClient performs the handshake on conn, which it owns from then on: it is
// closed when the handshake fails. ctx bounds the handshake only.
//
// Typed errors: *VersionError, *AccessDeniedError, *PreambleError, *RemoteError.
func NewClient(ctx context.Context, conn io.ReadWriteCloser, opts ClientOptions) (*Client, error) {
	c := &Client{
		conn: conn,
		in:   newDecoder(conn, opts.Limits, opts.StoreDir),
		out:  wire.NewWriter(conn),
	}
	err := c.step(ctx, "handshake with the daemon", func() error { return c.handshake(opts.Log) })
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	if c.broken != nil {
		return nil, fmt.Errorf("handshake with the daemon: %w", c.broken)
	}
	return c, nil
}

// handshake sends our whole part at once. It depends on nothing that the daemon
// says, since we have no features to offer, and so works with daemons that wait
// for our version as well as with those that first send theirs. Sending runs
// beside reading because a daemon may read no further before it has been heard.
func (c *Client) handshake(log MessageSink) error {
	c.out.Uint64(magicClient)
	c.out.Uint64(uint64(Protocol))
	c.out.Uint64(0) // no CPU affinity
	c.out.Uint64(0) // no reserved space
	sent := make(chan error, 1)
	go func() { sent <- c.out.Flush() }()
	err := c.readHandshake(log)
	if err != nil {
		// Our part may still be stuck in a peer that does not read.
		_ = c.breakOff(err)
	}
	if werr := <-sent; err == nil && werr != nil {
		err = c.breakOff(fmt.Errorf("send our part: %w", werr))
	}
	return err
}

func (c *Client) readHandshake(log MessageSink) error {
	if err := c.readMagic(); err != nil {
		return err
	}
	d := c.in
	d.SetBudget(d.limits.Message)
	c.peer.Version = Version(d.Uint64("protocol version"))
	if err := d.Err(); err != nil {
		return err
	}
	if c.peer.Version.Major() != Protocol.Major() || c.peer.Version < OldestProtocol {
		return &VersionError{Peer: "daemon", Version: c.peer.Version}
	}
	d.version = min(Protocol, c.peer.Version)
	c.peer.DaemonVersion = d.String("Nix version", limitVersion)
	if d.version >= versionTrust {
		c.peer.Trust = Trust(d.Enum("trust", uint64(NotTrusted)))
	}
	if err := d.Err(); err != nil {
		return err
	}
	return d.messages(log)
}

// readMagic reads the word that every daemon starts with.
func (c *Client) readMagic() error {
	b, err := c.in.Window(8)
	if len(b) >= 8 {
		switch binary.LittleEndian.Uint64(b) {
		case magicServer:
			c.in.Skip(8)
			return nil
		case magicAccessDenied:
			return &AccessDeniedError{}
		}
	}
	switch {
	case len(b) == 0 && errors.Is(err, io.EOF):
		return fmt.Errorf("the peer closed the connection without a word: %w", io.ErrUnexpectedEOF)
	case len(b) == 0:
		return err
	}
	return &PreambleError{Text: c.preamble(b)}
}

// preamble returns the first line of what the peer sent instead of a handshake.
func (c *Client) preamble(b []byte) string {
	defer c.closeAfter(preambleWait)()
	text := bytes.Clone(b[:min(len(b), maxPreamble)])
	c.in.Skip(len(text))
	for len(text) < maxPreamble && !bytes.ContainsRune(bytes.TrimLeft(text, "\r\n"), '\n') {
		b, err := c.in.Window(1)
		if err != nil {
			break
		}
		n := min(len(b), maxPreamble-len(text))
		text = append(text, b[:n]...)
		c.in.Skip(n)
	}
	line, _, _ := bytes.Cut(bytes.TrimLeft(text, "\r\n"), []byte("\n"))
	return printable(line)
}

// printable returns b as text that is not longer, with a dot for every byte or
// character that is not printable and blanks around it cut off.
func printable(b []byte) string {
	b = bytes.TrimSpace(b)
	var out strings.Builder
	for len(b) > 0 {
		r, size := utf8.DecodeRune(b)
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			r = '.'
		}
		out.WriteRune(r)
		b = b[size:]
	}
	return out.String()
}
