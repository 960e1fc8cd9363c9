// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"errors"
	"fmt"
	"slices"

	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

// Request is what Server.Next returns: a pointer to one of SetOptions,
// QueryValidPaths, QuerySubstitutablePaths, AddMultipleToStore, BuildDerivation,
// BuildPaths, AddTempRoot, QueryPathInfo and NARFromPath.
type Request interface {
	// Operation returns the operation asked for.
	Operation() Operation
}

// QueryValidPaths (31) asks which paths are in the store. Answer: ReplyPaths.
type QueryValidPaths struct {
	Paths []string
	// Substitute asks to fetch what is missing first.
	Substitute bool
}

// QuerySubstitutablePaths (32) asks which paths could be fetched. Answer:
// ReplyPaths.
type QuerySubstitutablePaths struct{ Paths []string }

// BuildDerivation (36) asks to build a derivation. Answer: ReplyBuildResult.
type BuildDerivation struct {
	// DrvPath is the derivation's store path; nothing need be there.
	DrvPath    string
	Derivation *BasicDerivation
	// Mode is always BuildNormal: Next refuses the others.
	Mode BuildMode
}

// BuildPaths (9) asks to build or fetch paths. Answer: ReplyDone.
type BuildPaths struct {
	// Paths may carry output names behind "!".
	Paths []string
	Mode  BuildMode
}

// AddTempRoot (11) asks to keep a path, there or not, from garbage collection as
// long as the connection lives. Answer: ReplyDone.
type AddTempRoot struct{ Path string }

// QueryPathInfo (26) asks what is known about a path. Answer: ReplyPathInfo.
type QueryPathInfo struct{ Path string }

// NARFromPath (38) asks for the archive of a path. Answer: ReplyNAR or StreamNAR.
type NARFromPath struct{ Path string }

// Operation implements Request.
func (*QueryValidPaths) Operation() Operation { return OpQueryValidPaths }

// Operation implements Request.
func (*QuerySubstitutablePaths) Operation() Operation { return OpQuerySubstitutablePaths }

// Operation implements Request.
func (*BuildDerivation) Operation() Operation { return OpBuildDerivation }

// Operation implements Request.
func (*BuildPaths) Operation() Operation { return OpBuildPaths }

// Operation implements Request.
func (*AddTempRoot) Operation() Operation { return OpAddTempRoot }

// Operation implements Request.
func (*QueryPathInfo) Operation() Operation { return OpQueryPathInfo }

// Operation implements Request.
func (*NARFromPath) Operation() Operation { return OpNARFromPath }

// Next reads the next request. It returns io.EOF when the client has closed the
// connection between requests, as clients do at the end, and a *ProtocolError for
// an operation that is not offered, for one asked for in a way that is not, and
// for data that breaks the protocol. Other errors are the connection's.
func (s *Server) Next() (Request, error) {
	s.mu.Lock()
	waiting, open := s.waiting, s.open
	s.mu.Unlock()
	if waiting {
		return nil, fmt.Errorf("%s has not been answered", open)
	}
	if err := s.in.Wait(); err != nil {
		return nil, err
	}
	s.in.SetBudget(s.in.limits.Message)
	op := Operation(s.in.Uint64("operation"))
	if err := s.in.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.waiting, s.open = true, op
	s.mu.Unlock()
	if !slices.Contains(s.opts.Operations, op) {
		return nil, &ProtocolError{Operation: op, Text: fmt.Sprintf(
			"%s is not offered by this dispatcher: only %s", op, joinOperations(s.opts.Operations))}
	}
	req := s.request(op)
	if err := s.in.Err(); err != nil {
		return nil, requestError(op, err)
	}
	if err := check(req); err != nil {
		return nil, err
	}
	if up, ok := req.(*AddMultipleToStore); ok {
		s.mu.Lock()
		s.upload = up
		s.mu.Unlock()
	}
	return req, nil
}

// request reads what follows the code of op.
func (s *Server) request(op Operation) Request {
	d := s.in
	switch op {
	case OpSetOptions:
		return d.setOptions()
	case OpQueryValidPaths:
		return &QueryValidPaths{Paths: d.paths("paths"), Substitute: d.Bool("substitute")}
	case OpQuerySubstitutablePaths:
		return &QuerySubstitutablePaths{Paths: d.paths("paths")}
	case OpAddMultipleToStore:
		return d.upload()
	case OpBuildDerivation:
		return &BuildDerivation{
			DrvPath:    d.derivationPath("derivation path"),
			Derivation: d.derivation(),
			Mode:       BuildMode(d.Uint64("build mode")),
		}
	case OpBuildPaths:
		return &BuildPaths{
			Paths: d.Strings("paths", d.limits.Paths, limitPath),
			Mode:  BuildMode(d.Enum("build mode", uint64(BuildCheck))),
		}
	case OpAddTempRoot:
		return &AddTempRoot{Path: d.path("path")}
	case OpQueryPathInfo:
		return &QueryPathInfo{Path: d.path("path")}
	case OpNARFromPath:
		return &NARFromPath{Path: d.path("path")}
	}
	d.Fail("operation", "%s has no decoder", op)
	return nil
}

// check refuses what an operation offers in the protocol but not here.
func check(req Request) error {
	switch r := req.(type) {
	case *BuildDerivation:
		if r.Mode != BuildNormal {
			return &ProtocolError{Operation: r.Operation(), Text: fmt.Sprintf(
				"%s in mode %s is not offered by this dispatcher: only mode %s", r.Operation(), r.Mode, BuildNormal)}
		}
	case *AddMultipleToStore:
		if r.Repair {
			return &ProtocolError{Operation: r.Operation(), Text: fmt.Sprintf(
				"%s with repair is not offered by this dispatcher", r.Operation())}
		}
	}
	return nil
}

// requestError tells data that breaks the protocol from a broken connection.
func requestError(op Operation, err error) error {
	if errors.Is(err, wire.ErrMalformed) {
		return &ProtocolError{Operation: op, Text: fmt.Sprintf("%s: %v", op, err), Err: err}
	}
	return fmt.Errorf("%s: %w", op, err)
}
