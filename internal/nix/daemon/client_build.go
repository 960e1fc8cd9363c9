// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"context"

	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

// BuildDerivation (36) builds drv, whose inputs must be in the daemon's store. A
// build that fails is a result, not an error.
func (c *Client) BuildDerivation(ctx context.Context, drvPath string, drv *BasicDerivation, mode BuildMode, sink MessageSink) (*BuildResult, error) {
	var result *BuildResult
	err := c.call(ctx, OpBuildDerivation, sink, func(w *wire.Writer) { encodeBuild(w, drvPath, drv, mode) }, func(d *decoder) error {
		result = d.buildResult()
		return d.Err()
	})
	if err != nil {
		return nil, err
	}
	return result, nil
}

// BuildPaths (9) builds or fetches paths. We send it with no paths and BuildRepair
// only: a daemon refuses that to users it does not trust and otherwise does
// nothing, which tells the two apart where the handshake has no trust word.
func (c *Client) BuildPaths(ctx context.Context, paths []string, mode BuildMode, sink MessageSink) error {
	return c.call(ctx, OpBuildPaths, sink, func(w *wire.Writer) {
		w.Strings(paths)
		w.Uint64(uint64(mode))
	}, func(d *decoder) error {
		d.Uint64("reply")
		return d.Err()
	})
}
