// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

// SetOptions (19) is a client's settings. They are read and thrown away: what is
// right for the client is not for its builders, and among the values are secrets.
// Answer: ReplyDone.
type SetOptions struct {
	// Overrides counts the named settings.
	Overrides int
}

// Operation implements Request.
func (*SetOptions) Operation() Operation { return OpSetOptions }

// optionWords is the number of unnamed settings before the named ones.
const optionWords = 12

func (d *decoder) setOptions() *SetOptions {
	for range optionWords {
		d.Uint64("option")
	}
	o := &SetOptions{Overrides: d.Count("setting count", limitOptions)}
	for range o.Overrides {
		d.SkipString("setting name", limitName)
		d.SkipString("setting value", limitText)
		if d.Err() != nil {
			break
		}
	}
	return o
}
