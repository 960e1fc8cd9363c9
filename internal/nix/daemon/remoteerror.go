// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import "nixbuilder.io/nix-builder-operator/internal/nix/wire"

// errorType is the word that Nix puts before and after the level of an error.
const errorType = "Error"

// remoteError reads what follows the code of an error, in the form of 1.26 and
// later.
func (d *decoder) remoteError() *RemoteError {
	d.String("error type", limitName)
	e := &RemoteError{Level: Level(d.Uint64("error level"))}
	d.String("error name", limitName)
	e.Message = d.String("error message", limitText)
	d.noPosition()
	n := d.Count("trace count", limitTraces)
	for range n {
		d.noPosition()
		e.Traces = append(e.Traces, d.String("trace", limitText))
		if d.Err() != nil {
			return nil
		}
	}
	return e
}

// noPosition reads the mark of a source position, which never travels.
func (d *decoder) noPosition() {
	if d.Bool("error position mark") {
		d.Fail("error position mark", "a source position has no form in this protocol")
	}
}

func (e *RemoteError) encode(w *wire.Writer) {
	w.Uint64(stderrError)
	w.String(errorType)
	w.Uint64(uint64(e.Level))
	w.String(errorType)
	w.String(e.Message)
	w.Uint64(0)
	w.Uint64(uint64(len(e.Traces)))
	for _, t := range e.Traces {
		w.Uint64(0)
		w.String(t)
	}
}

// encodeOld writes the error for clients before 1.26, with an exit status.
func (e *RemoteError) encodeOld(w *wire.Writer) {
	w.Uint64(stderrError)
	w.String(e.Message)
	w.Uint64(1)
}

// asRemoteError turns err into what travels. Only an error that is itself the
// peer's keeps its traces; one that wraps it has its own text.
func asRemoteError(err error) *RemoteError {
	if e, ok := err.(*RemoteError); ok {
		return e
	}
	return &RemoteError{Level: LevelError, Message: err.Error()}
}

// isRemote tells whether err is the peer's answer itself. An error that wraps a
// RemoteError came from somewhere else, such as a sink.
func isRemote(err error) bool {
	_, ok := err.(*RemoteError)
	return ok
}
