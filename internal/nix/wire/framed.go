// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package wire

import (
	"encoding/binary"
	"io"
	"math"
)

// maxFrame is the largest frame accepted. Nix checks the same bound; nothing is
// allocated by it.
const maxFrame = math.MaxUint32

// FramedReader reads a framed stream: frames of a length and that many bytes,
// ended by a frame of length zero. It leaves the bytes behind the end alone.
type FramedReader struct {
	r    *Reader
	left int64
	done bool
}

// NewFramedReader returns a FramedReader at the start of a framed stream.
func NewFramedReader(r *Reader) *FramedReader { return &FramedReader{r: r} }

// Done tells whether the end of the framed stream has been read.
func (f *FramedReader) Done() bool { return f.done }

// next makes sure that a frame is open; io.EOF is the end of the framed stream.
func (f *FramedReader) next() error {
	if f.left > 0 {
		return nil
	}
	if f.done {
		return io.EOF
	}
	f.left = int64(f.r.limited("frame", "length", maxFrame))
	if err := f.r.Err(); err != nil {
		return err
	}
	if f.left == 0 {
		f.done = true
		return io.EOF
	}
	return nil
}

// Read implements io.Reader. It returns io.EOF at the end of the framed stream
// and the Reader's *Error when the connection ends before that.
func (f *FramedReader) Read(p []byte) (int, error) {
	if err := f.next(); err != nil {
		return 0, err
	}
	n, err := f.r.Read(p[:min(int64(len(p)), f.left)])
	f.left -= int64(n)
	if n > 0 {
		// An error, if there was one, comes again with the next read.
		return n, nil
	}
	if err == io.EOF {
		f.r.fail(f.r.off, "frame", io.ErrUnexpectedEOF)
		err = f.r.Err()
	}
	return 0, err
}

// Drain throws the rest of the framed stream away, at most limit bytes, and
// returns how many there were.
func (f *FramedReader) Drain(limit int64) (int64, error) {
	var n int64
	for {
		switch err := f.next(); {
		case err == io.EOF:
			return n, nil
		case err != nil:
			return n, err
		}
		b, err := f.r.window(1)
		if err != nil {
			f.r.fail(f.r.off, "frame", noEOF(err))
			return n, f.r.Err()
		}
		k := int(min(int64(len(b)), f.left))
		f.r.skip(k)
		f.left -= int64(k)
		if n += int64(k); n > limit {
			return n, &LimitError{What: "rest of the upload", Value: uint64(n), Limit: uint64(limit)}
		}
	}
}

const (
	// headerSize is the size of a frame's length.
	headerSize = 8
	// maxPayload makes frames with their header fill whole buffers on their way: a few
	// bytes more would be written and encrypted by themselves.
	maxPayload = BufferSize - headerSize
)

// FramedWriter writes a framed stream in frames of up to BufferSize bytes with their
// header, each with one write. Close ends it; errors stick.
type FramedWriter struct {
	w   io.Writer
	buf []byte // header, then n bytes of payload
	n   int
	err error
}

// NewFramedWriter returns a FramedWriter on w, which is not closed by it.
func NewFramedWriter(w io.Writer) *FramedWriter {
	return &FramedWriter{w: w, buf: make([]byte, BufferSize)}
}

// Write implements io.Writer.
func (f *FramedWriter) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		if f.err != nil {
			return total - len(p), f.err
		}
		k := copy(f.buf[headerSize+f.n:], p)
		f.n += k
		p = p[k:]
		if f.n == maxPayload {
			f.flush()
		}
	}
	return total, f.err
}

// ReadFrom implements io.ReaderFrom: src is read straight into the frame.
func (f *FramedWriter) ReadFrom(src io.Reader) (int64, error) {
	var total int64
	for f.err == nil {
		k, err := src.Read(f.buf[headerSize+f.n:])
		f.n += k
		total += int64(k)
		if f.n == maxPayload {
			f.flush()
		}
		if err == io.EOF {
			return total, f.err
		}
		if err != nil {
			return total, err
		}
	}
	return total, f.err
}

// Flush sends what is buffered as a frame of its own.
func (f *FramedWriter) Flush() error {
	if f.n > 0 {
		f.flush()
	}
	return f.err
}

func (f *FramedWriter) flush() {
	if f.err != nil {
		return
	}
	binary.LittleEndian.PutUint64(f.buf, uint64(f.n))
	_, f.err = f.w.Write(f.buf[:headerSize+f.n])
	f.n = 0
}

// Close sends what is buffered and the end of the framed stream.
func (f *FramedWriter) Close() error {
	if err := f.Flush(); err != nil {
		return err
	}
	f.flush()
	return f.err
}
