// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"cmp"
	"math"
)

// Limits bounds what a peer can make us hold. Zero fields mean the defaults.
type Limits struct {
	// Message is the largest size in bytes of one request, reply or log message
	// without the archives in it. Default 64 MiB.
	Message int64
	// Paths is the largest number of store paths in one list and of archives in
	// one upload. Default 1 Mi.
	Paths int
	// NAR is the largest archive in bytes. Default none.
	NAR int64
	// Drain is how many bytes of an upload a Server throws away at most, after it
	// has refused the upload, before it gives up on the connection. Default 1 GiB.
	Drain int64
}

// withDefaults fills in what is zero.
func (l Limits) withDefaults() Limits {
	l.Message = cmp.Or(l.Message, 64<<20)
	l.Paths = cmp.Or(l.Paths, 1<<20)
	l.NAR = cmp.Or(l.NAR, math.MaxInt64)
	l.Drain = cmp.Or(l.Drain, 1<<30)
	return l
}

// Limits that no legitimate peer comes near. Lengths are bytes.
const (
	limitPath       = 4096
	limitName       = 4096
	limitVersion    = 256
	limitHash       = 256
	limitSignature  = 4096
	limitSignatures = 1024
	limitCA         = 4096
	limitOutputs    = 4096
	limitArgs       = 1 << 18
	limitEnv        = 1 << 18
	limitFields     = 64
	limitTraces     = 4096
	limitOptions    = 4096
	// limitText bounds what people wrote: environment values, arguments, log
	// lines, error messages. Limits.Message bounds the message they are part of.
	limitText = 64 << 20
)
