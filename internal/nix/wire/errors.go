// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package wire

import (
	"errors"
	"fmt"
)

// ErrMalformed is matched (errors.Is) by every error that says the bytes of the
// peer break the protocol or exceed a limit, as opposed to a failing connection.
var ErrMalformed = errors.New("malformed data")

// Error tells where in a stream reading failed.
type Error struct {
	// Offset counts bytes from the start of the Reader to the start of the field.
	Offset int64
	// Field names what was being read.
	Field string
	// Err is the cause: a *LimitError, a *ValueError or the connection's own
	// error, with io.ErrUnexpectedEOF for a stream that ends too early.
	Err error
}

// Error implements error.
func (e *Error) Error() string {
	return fmt.Sprintf("reading %s at byte %d: %v", e.Field, e.Offset, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// LimitError says that a length or count of the peer is larger than accepted.
type LimitError struct {
	// What says what is limited, for instance "length".
	What string
	// Value is what the peer sent, Limit the largest value accepted.
	Value, Limit uint64
}

// Error implements error.
func (e *LimitError) Error() string {
	return fmt.Sprintf("%s %d exceeds the limit of %d", e.What, e.Value, e.Limit)
}

// Is makes the error match ErrMalformed.
func (e *LimitError) Is(target error) bool { return target == ErrMalformed }

// ValueError says that a field holds a value that the protocol does not allow.
type ValueError struct {
	// Text says what is wrong.
	Text string
}

// Error implements error.
func (e *ValueError) Error() string { return e.Text }

// Is makes the error match ErrMalformed.
func (e *ValueError) Is(target error) bool { return target == ErrMalformed }
