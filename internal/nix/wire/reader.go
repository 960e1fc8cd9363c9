// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
)

const (
	// BufferSize is the size in bytes of the buffers of Reader and
	// FramedWriter: large enough that bulk transfers are not bound by system calls.
	BufferSize = 64 << 10

	// elementCost is what a list element costs a budget beside its bytes, so that
	// a million empty strings are not free.
	elementCost = 32
)

// Reader decodes primitives from a stream. It buffers, so nothing else may read
// from the stream afterwards. It is not safe for concurrent use.
type Reader struct {
	buf    *bufio.Reader
	off    int64
	budget int64
	err    error
}

// NewReader returns a Reader on r without a budget.
func NewReader(r io.Reader) *Reader {
	return &Reader{buf: bufio.NewReaderSize(r, BufferSize), budget: math.MaxInt64}
}

// Err returns the first error met, nil if there was none. It is a *Error.
func (r *Reader) Err() error { return r.err }

// Offset returns how many bytes have been consumed.
func (r *Reader) Offset() int64 { return r.off }

// SetBudget limits the bytes that String and Strings may hand out until the next
// call. It is renewed at the start of each message.
func (r *Reader) SetBudget(n int64) { r.budget = n }

// Fail records a failure of the decoder itself on the field just read. It has no
// effect after an earlier error.
func (r *Reader) Fail(field, format string, args ...any) {
	r.fail(r.off, field, &ValueError{Text: fmt.Sprintf(format, args...)})
}

func (r *Reader) fail(off int64, field string, err error) {
	if r.err == nil {
		r.err = &Error{Offset: off, Field: field, Err: err}
	}
}

// Wait blocks until at least one byte can be read. It returns io.EOF, without
// recording it, if the stream ends here.
func (r *Reader) Wait() error {
	if r.err != nil {
		return r.err
	}
	if _, err := r.buf.Peek(1); err != nil {
		if errors.Is(err, io.EOF) {
			return io.EOF
		}
		r.fail(r.off, "next message", err)
		return r.err
	}
	return nil
}

// Uint64 reads one word.
func (r *Reader) Uint64(field string) uint64 {
	if r.err != nil {
		return 0
	}
	b, err := r.buf.Peek(8)
	if err != nil {
		r.fail(r.off, field, noEOF(err))
		return 0
	}
	v := binary.LittleEndian.Uint64(b)
	r.skip(8)
	return v
}

// Bool reads a word that must be 0 or 1.
func (r *Reader) Bool(field string) bool {
	off := r.off
	v := r.Uint64(field)
	if v > 1 {
		r.fail(off, field, &ValueError{Text: fmt.Sprintf("%d is not a boolean", v)})
		return false
	}
	return v == 1
}

// Enum reads a word that must not exceed limit.
func (r *Reader) Enum(field string, limit uint64) uint64 {
	return r.limited(field, "value", limit)
}

// Count reads the number of elements that follow, at most limit.
func (r *Reader) Count(field string, limit int) int {
	return int(r.limited(field, "count", uint64(limit)))
}

func (r *Reader) limited(field, what string, limit uint64) uint64 {
	off := r.off
	v := r.Uint64(field)
	if v > limit {
		r.fail(off, field, &LimitError{What: what, Value: v, Limit: limit})
		return 0
	}
	return v
}

// String reads a padded byte string of at most limit bytes.
func (r *Reader) String(field string, limit int) string {
	off := r.off
	n := r.length(field, limit)
	if r.err != nil || n == 0 {
		return ""
	}
	if r.budget -= int64(n); r.budget < 0 {
		r.fail(off, field, &ValueError{Text: "the message exceeds its size limit"})
		return ""
	}
	var b strings.Builder
	b.Grow(min(n, BufferSize))
	r.pass(off, field, n, func(p []byte) { b.Write(p) })
	if r.err != nil {
		return ""
	}
	return b.String()
}

// SkipString reads a padded byte string of at most limit bytes and keeps nothing
// of it.
func (r *Reader) SkipString(field string, limit int) {
	off := r.off
	r.pass(off, field, r.length(field, limit), func([]byte) {})
}

// Strings reads a list of at most count strings of at most limit bytes each. An
// empty list is nil.
func (r *Reader) Strings(field string, count, limit int) []string {
	n := r.Count(field+" count", count)
	var list []string
	for range n {
		if r.err == nil && r.spend(field, elementCost) {
			list = append(list, r.String(field, limit))
		}
		if r.err != nil {
			return nil
		}
	}
	return list
}

// Spend takes n bytes off the budget for what a decoder is about to keep; it
// fails the Reader and returns false when they are not there.
func (r *Reader) spend(field string, n int64) bool {
	if r.budget -= n; r.budget < 0 {
		r.fail(r.off, field, &ValueError{Text: "the message exceeds its size limit"})
		return false
	}
	return true
}

// length reads the length of a string that may have at most limit bytes.
func (r *Reader) length(field string, limit int) int {
	return int(r.limited(field, "length", uint64(limit)))
}

// pass hands n bytes to keep, in the pieces in which they arrive, and checks the
// padding behind them.
func (r *Reader) pass(off int64, field string, n int, keep func([]byte)) {
	for left := n; left > 0 && r.err == nil; {
		b, err := r.window(1)
		if err != nil {
			r.fail(off, field, noEOF(err))
			return
		}
		b = b[:min(left, len(b))]
		keep(b)
		r.skip(len(b))
		left -= len(b)
	}
	r.padding(field, n)
}

// padding reads the zeros that fill a string of n bytes up to whole words.
func (r *Reader) padding(field string, n int) {
	pad := -n & 7
	if r.err != nil || pad == 0 {
		return
	}
	b, err := r.buf.Peek(pad)
	if err != nil {
		r.fail(r.off, field, noEOF(err))
		return
	}
	for _, c := range b {
		if c != 0 {
			r.fail(r.off, field, &ValueError{Text: "padding is not zero"})
			return
		}
	}
	r.skip(pad)
}

// Read implements io.Reader on the raw bytes. Errors stick, except io.EOF.
func (r *Reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.buf.Read(p)
	r.off += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		r.fail(r.off, "stream", err)
		err = r.err
	}
	return n, err
}

// Window returns the bytes that are buffered, waiting until there are at least
// least of them (not more than BufferSize). The slice is valid until the next
// call. With fewer bytes left in the stream it returns those and
// io.ErrUnexpectedEOF, or none and io.EOF; the error sticks unless it is io.EOF.
func (r *Reader) Window(least int) ([]byte, error) {
	if r.err != nil {
		return nil, r.err
	}
	b, err := r.window(least)
	switch {
	case err == nil:
		return b, nil
	case errors.Is(err, io.EOF) && len(b) == 0:
		return nil, io.EOF
	}
	r.fail(r.off, "stream", noEOF(err))
	return b, r.err
}

func (r *Reader) window(least int) ([]byte, error) {
	if r.buf.Buffered() < least {
		if b, err := r.buf.Peek(least); err != nil {
			return b, err
		}
	}
	return r.buf.Peek(r.buf.Buffered())
}

// Buffered returns how many bytes can be read without touching the stream.
func (r *Reader) Buffered() int { return r.buf.Buffered() }

// Skip consumes n bytes that Window returned.
func (r *Reader) Skip(n int) { r.skip(min(n, r.buf.Buffered())) }

// skip consumes bytes that are known to be buffered, which cannot fail.
func (r *Reader) skip(n int) {
	_, _ = r.buf.Discard(n)
	r.off += int64(n)
}

// noEOF turns the end of the stream inside a field into what it is.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
