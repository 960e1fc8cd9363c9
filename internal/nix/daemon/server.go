// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"fmt"
	"io"
	"slices"
	"sync"

	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

// ServerOptions configures a Server.
type ServerOptions struct {
	// DaemonVersion is the text that clients show as the daemon's version.
	DaemonVersion string
	// Trust is what the client is told. A build hook that is told NotTrusted uses
	// other operations than HookOperations.
	Trust Trust
	// Limits bounds what the client can make us hold.
	Limits Limits
	// StoreDir is the client's store directory, default /nix/store. Store paths
	// elsewhere are protocol errors.
	StoreDir string
	// Operations are those offered, default HookOperations.
	Operations []Operation
	// Version is what to announce, default Protocol. Others are for tests of
	// clients; what is spoken is never above Protocol.
	Version Version
}

// Server is our end of a connection from a Nix client. Next, the Reply methods
// and Fail are called by one goroutine, in turn; Send may be called at any time
// by any.
type Server struct {
	conn   io.ReadWriteCloser
	stream *aheadReader
	in     *decoder
	opts   ServerOptions
	client Version

	// mu guards the fields below: one writer at a time.
	mu  sync.Mutex
	out *wire.Writer
	// waiting tells that a request waits for its reply, open is its operation.
	waiting bool
	open    Operation
	// upload is the upload being read, nil for none.
	upload *AddMultipleToStore
}

// ClientVersion returns the client's own protocol version.
func (s *Server) ClientVersion() Version { return s.client }

// Close closes the connection and waits for what WatchHangup left behind.
func (s *Server) Close() error {
	err := s.conn.Close()
	s.stream.join()
	return err
}

// Send sends m to the client as part of the running operation. Once that has been
// answered it returns ErrNoRequest and sends nothing, so late log lines do no
// harm. It is safe for concurrent use.
func (s *Server) Send(m Message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.waiting {
		return ErrNoRequest
	}
	m.encode(s.out)
	return s.flush()
}

func (s *Server) flush() error {
	if err := s.out.Flush(); err != nil {
		return fmt.Errorf("send to the client: %w", err)
	}
	return nil
}

// Fail answers the running operation with err. A *RemoteError passes on as it is,
// of others the text is sent. Where an upload is still under way, its rest is then
// read and thrown away, up to Limits.Drain bytes, so that the connection stays in
// step; an error means that it cannot be used any more. That waits for the client,
// and only closing the connection cuts it short.
//
// After a *ProtocolError of Next, Fail tells the client what is wrong, and the
// caller closes.
func (s *Server) Fail(err error) error {
	s.mu.Lock()
	if !s.waiting {
		s.mu.Unlock()
		return ErrNoRequest
	}
	asRemoteError(err).encode(s.out)
	werr := s.flush()
	op, upload := s.open, s.upload
	s.waiting, s.upload = false, nil
	s.mu.Unlock()
	if werr != nil || upload == nil {
		return werr
	}
	if err := upload.drain(s.in.limits.Drain); err != nil {
		return fmt.Errorf("%s: throw away the rest of a refused upload: %w", op, err)
	}
	return nil
}

// reply ends the running operation, which must be one of ops.
func (s *Server) reply(encode func(*wire.Writer), ops ...Operation) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.begin(ops...); err != nil {
		return err
	}
	encode(s.out)
	return s.flush()
}

// begin writes the end of messages. What follows is the reply.
func (s *Server) begin(ops ...Operation) error {
	if !s.waiting {
		return ErrNoRequest
	}
	if !slices.Contains(ops, s.open) {
		return fmt.Errorf("%s cannot be answered like %s", s.open, joinOperations(ops))
	}
	if s.upload != nil && !s.upload.ended {
		return fmt.Errorf("%s cannot be answered before the upload was read to its end", s.open)
	}
	s.waiting, s.upload = false, nil
	s.out.Uint64(stderrLast)
	return nil
}

// ReplyPaths answers QueryValidPaths and QuerySubstitutablePaths.
func (s *Server) ReplyPaths(paths []string) error {
	return s.reply(func(w *wire.Writer) { w.Strings(paths) }, OpQueryValidPaths, OpQuerySubstitutablePaths)
}

// ReplyPathInfo answers QueryPathInfo; without valid, info is not looked at.
func (s *Server) ReplyPathInfo(info *PathInfo, valid bool) error {
	return s.reply(func(w *wire.Writer) {
		w.Bool(valid)
		if valid {
			info.encodeUnkeyed(w)
		}
	}, OpQueryPathInfo)
}

// ReplyBuildResult answers BuildDerivation.
func (s *Server) ReplyBuildResult(result *BuildResult) error {
	return s.reply(func(w *wire.Writer) { result.encode(w, s.in.version) }, OpBuildDerivation)
}

// ReplyDone answers operations that have no reply of their own: SetOptions,
// AddMultipleToStore, BuildPaths and AddTempRoot.
func (s *Server) ReplyDone() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	op := s.open
	if err := s.begin(OpSetOptions, OpAddMultipleToStore, OpBuildPaths, OpAddTempRoot); err != nil {
		return err
	}
	if op == OpBuildPaths || op == OpAddTempRoot {
		s.out.Uint64(1)
	}
	return s.flush()
}

// ReplyNAR answers NARFromPath with the archive that src holds, to its end. While
// src has yielded nothing, its error leaves the operation open for Fail; later,
// only closing the connection tells the client.
func (s *Server) ReplyNAR(src io.Reader) error {
	return s.StreamNAR(func(w io.Writer) error {
		_, err := io.Copy(w, src)
		return err
	})
}

// StreamNAR answers NARFromPath with the archive that write writes. Nothing is
// sent before its first byte, so until then an error leaves the operation open
// for Fail; later, only closing the connection tells the client.
func (s *Server) StreamNAR(write func(io.Writer) error) error {
	a := &archiveWriter{server: s}
	if err := write(a); err != nil {
		return err
	}
	if !a.begun {
		return fmt.Errorf("%s: the archive is empty", OpNARFromPath)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flush()
}

// archiveWriter sends the end of messages before the first byte of an archive.
// Nothing else is sent after that, so it needs no lock for the rest.
type archiveWriter struct {
	server *Server
	begun  bool
}

func (a *archiveWriter) begin() error {
	if a.begun {
		return nil
	}
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	if err := a.server.begin(OpNARFromPath); err != nil {
		return err
	}
	a.begun = true
	return nil
}

// Write implements io.Writer.
func (a *archiveWriter) Write(p []byte) (int, error) {
	if err := a.begin(); err != nil {
		return 0, err
	}
	return a.server.out.Write(p)
}

// ReadFrom implements io.ReaderFrom: file contents are read into the send buffer.
func (a *archiveWriter) ReadFrom(src io.Reader) (int64, error) {
	if !a.begun {
		first := make([]byte, wire.BufferSize)
		n, err := src.Read(first)
		for n == 0 && err == nil {
			n, err = src.Read(first)
		}
		if n > 0 {
			if _, werr := a.Write(first[:n]); werr != nil {
				return 0, werr
			}
		}
		if err != nil {
			return int64(n), ignoreEOF(err)
		}
		rest, err := a.server.out.ReadFrom(src)
		return int64(n) + rest, err
	}
	return a.server.out.ReadFrom(src)
}

func ignoreEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}
