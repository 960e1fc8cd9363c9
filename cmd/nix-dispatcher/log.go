// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"io"
	"log/slog"
	"regexp"
)

// colours are the terminal escapes that daemons put into their errors. Clients show
// them; a log does not.
var colours = regexp.MustCompile(`\x1b\[[0-9;]*m`)

// logger returns the logger that the flags ask for.
func (o options) logger(to io.Writer) *slog.Logger {
	handler := &slog.HandlerOptions{Level: slog.Level(o.logLevel), ReplaceAttr: plain}
	if o.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(to, handler))
	}
	return slog.New(slog.NewTextHandler(to, handler))
}

// plain takes the colours out of texts and errors.
func plain(_ []string, a slog.Attr) slog.Attr {
	text := ""
	switch v := a.Value.Any().(type) {
	case string:
		text = v
	case error:
		text = v.Error()
	default:
		return a
	}
	a.Value = slog.StringValue(colours.ReplaceAllLiteralString(text, ""))
	return a
}
