// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package wire

import (
	"bufio"
	"encoding/binary"
	"io"
)

// Writer encodes primitives onto a stream through a buffer. Errors stick and come
// back from Flush, so encoders need not look at each write. It is not safe for
// concurrent use.
type Writer struct {
	buf *bufio.Writer
}

// writerSize is less than what a FramedWriter and transfers write at once, which then
// passes without being copied.
const writerSize = BufferSize / 2

// NewWriter returns a Writer on w.
func NewWriter(w io.Writer) *Writer {
	return &Writer{buf: bufio.NewWriterSize(w, writerSize)}
}

// Uint64 writes one word.
func (w *Writer) Uint64(v uint64) {
	_, _ = w.buf.Write(binary.LittleEndian.AppendUint64(w.buf.AvailableBuffer(), v))
}

// Bool writes 0 or 1.
func (w *Writer) Bool(v bool) {
	if v {
		w.Uint64(1)
		return
	}
	w.Uint64(0)
}

// String writes a byte string with its length and padding.
func (w *Writer) String(s string) {
	w.Uint64(uint64(len(s)))
	_, _ = w.buf.WriteString(s)
	_, _ = w.buf.WriteString("\x00\x00\x00\x00\x00\x00\x00"[:-len(s)&7])
}

// Strings writes a list of strings.
func (w *Writer) Strings(list []string) {
	w.Uint64(uint64(len(list)))
	for _, s := range list {
		w.String(s)
	}
}

// Write implements io.Writer on the raw bytes.
func (w *Writer) Write(p []byte) (int, error) { return w.buf.Write(p) }

// ReadFrom implements io.ReaderFrom: src is read straight into the buffer.
func (w *Writer) ReadFrom(src io.Reader) (int64, error) { return w.buf.ReadFrom(src) }

// Flush sends what is buffered and returns the first error of any write.
func (w *Writer) Flush() error { return w.buf.Flush() }
