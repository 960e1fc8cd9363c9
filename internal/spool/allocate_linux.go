// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package spool

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// allocateFrom is the size from which space is taken ahead. For small files that
// would cost more than writing them.
const allocateFrom = 1 << 20

// allocate takes the disk space for size bytes, so that a full disk shows
// before the first byte of a NAR is consumed and not in its middle. A full disk
// is [ErrNoRoom]; a file system that cannot allocate ahead is used as it is.
func allocate(file *os.File, size int64) error {
	if size < allocateFrom {
		return nil
	}
	// Mode 1 (keep size) leaves the file's length to what is written.
	err := syscall.Fallocate(int(file.Fd()), 1, 0, size)
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return fmt.Errorf("%w: %w", ErrNoRoom, err)
	case err != nil && !errors.Is(err, syscall.EOPNOTSUPP) && !errors.Is(err, syscall.ENOSYS) && !errors.Is(err, syscall.EINTR):
		return err
	}
	return nil
}
