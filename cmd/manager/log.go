// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/go-logr/logr"
)

// newLogger returns the logger of the process. Level debug is all there is: the
// libraries' V(1) to V(4), and every probe.
func newLogger(level, format string, output io.Writer) (logr.Logger, error) {
	levels := map[string]slog.Level{
		"error": slog.LevelError,
		"info":  slog.LevelInfo,
		"debug": slog.LevelDebug,
	}
	least, ok := levels[level]
	if !ok {
		return logr.Logger{}, fmt.Errorf("--log-level is %q: it must be error, info or debug", level)
	}
	options := &slog.HandlerOptions{Level: least}
	switch format {
	case "json":
		return logr.FromSlogHandler(slog.NewJSONHandler(output, options)), nil
	case "console":
		return logr.FromSlogHandler(slog.NewTextHandler(output, options)), nil
	}
	return logr.Logger{}, fmt.Errorf("--log-format is %q: it must be json or console", format)
}
