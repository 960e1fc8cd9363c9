// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// wantGone checks that ctx has ended because the client hung up.
func wantGone(t *testing.T, ctx context.Context) {
	t.Helper()
	if err := context.Cause(ctx); !errors.Is(err, ErrClientGone) {
		t.Errorf("cause = %v, want %v", err, ErrClientGone)
	}
}

// hangupRequest is what the client of these tests asks, again and again.
const hangupRequest = "\x1a\x00\x00\x00\x00\x00\x00\x00" + "\x2d\x00\x00\x00\x00\x00\x00\x00" + pathA + "\x00\x00\x00"

func TestWatchHangup(t *testing.T) {
	t.Parallel()
	tests := map[string]func(*testing.T, *Server, scriptedPeer){
		"client closes":                           hangupClientCloses,
		"stopped, then the next request":          hangupStoppedThenTheNextRequest,
		"watched again without a request between": hangupWatchedAgainWithoutARequestBetween,
		"closed before the watch":                 hangupClosedBeforeTheWatch,
		"next request before the watch ends":      hangupNextRequestBeforeTheWatchEnds,
		"client pipelines":                        hangupClientPipelines,
		"client pipelines, then closes":           hangupClientPipelinesThenCloses,
		"client sends more than is read ahead":    hangupClientSendsMoreThanIsReadAhead,
		"context of the caller ends":              hangupContextOfTheCallerEnds,
		"our own end closes":                      hangupOurOwnEndCloses,
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				handed := make(chan scriptedPeer)
				s := accept(t, ServerOptions{}, func(p scriptedPeer) {
					p.say(hangupRequest)
					handed <- p
				})
				if _, err := s.Next(); err != nil {
					t.Fatal(err)
				}
				p := <-handed
				answers := make(chan struct{})
				go func() { hearAll(p); close(answers) }()
				test(t, s, p)
				_ = s.Close()
				_ = p.Close()
				<-answers
			})
		})
	}
}

func hangupClientCloses(t *testing.T, s *Server, p scriptedPeer) {
	t.Helper()
	ctx, stop := s.WatchHangup(t.Context())
	defer stop()
	synctest.Wait()
	if ctx.Err() != nil {
		t.Errorf("ended early: %v", context.Cause(ctx))
	}
	_ = p.Close()
	<-ctx.Done()
	wantGone(t, ctx)
}

func hangupStoppedThenTheNextRequest(t *testing.T, s *Server, p scriptedPeer) {
	t.Helper()
	for range 3 {
		ctx, stop := s.WatchHangup(t.Context())
		synctest.Wait()
		stop()
		stop()
		if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) || errors.Is(cause, ErrClientGone) {
			t.Errorf("cause after stop = %v", cause)
		}
		if err := s.ReplyPathInfo(nil, false); err != nil {
			t.Fatal(err)
		}
		go p.say(hangupRequest)
		if _, err := s.Next(); err != nil {
			t.Fatal(err)
		}
	}
}

func hangupWatchedAgainWithoutARequestBetween(t *testing.T, s *Server, p scriptedPeer) {
	t.Helper()
	_, stop := s.WatchHangup(t.Context())
	stop()
	ctx, stop := s.WatchHangup(t.Context())
	defer stop()
	_ = p.Close()
	<-ctx.Done()
	wantGone(t, ctx)
}

func hangupClosedBeforeTheWatch(t *testing.T, s *Server, p scriptedPeer) {
	t.Helper()
	_, stop := s.WatchHangup(t.Context())
	synctest.Wait()
	stop()
	_ = p.Close()
	synctest.Wait()
	ctx, stop := s.WatchHangup(t.Context())
	defer stop()
	wantGone(t, ctx)
}

// A client that has its reply asks again at once, maybe before stop is called. It
// then waits for the answer and sends nothing that would end the read under way.
func hangupNextRequestBeforeTheWatchEnds(t *testing.T, s *Server, p scriptedPeer) {
	t.Helper()
	for range 3 {
		_, stop := s.WatchHangup(t.Context())
		if err := s.ReplyPathInfo(nil, false); err != nil {
			t.Fatal(err)
		}
		p.say(hangupRequest)
		synctest.Wait() // the watch has taken it and reads on
		stop()
		if req, err := s.Next(); err != nil || req.(*QueryPathInfo).Path != pathA {
			t.Fatalf("the request that was read ahead: %v, %v", req, err)
		}
	}
}

func hangupClientPipelines(t *testing.T, s *Server, p scriptedPeer) {
	t.Helper()
	ctx, stop := s.WatchHangup(t.Context())
	// The peer sends the next request in pieces while it is watched.
	for i := range len(hangupRequest) {
		p.say(hangupRequest[i : i+1])
	}
	synctest.Wait()
	if ctx.Err() != nil {
		t.Errorf("ended early: %v", context.Cause(ctx))
	}
	stop()
	_ = s.ReplyPathInfo(nil, false)
	if req, err := s.Next(); err != nil || req.(*QueryPathInfo).Path != pathA {
		t.Errorf("the pipelined request: %v, %v", req, err)
	}
	// One more comes by the ordinary way.
	_ = s.ReplyPathInfo(nil, false)
	go p.say(hangupRequest)
	if req, err := s.Next(); err != nil || req.(*QueryPathInfo).Path != pathA {
		t.Errorf("the request behind it: %v, %v", req, err)
	}
}

func hangupClientPipelinesThenCloses(t *testing.T, s *Server, p scriptedPeer) {
	t.Helper()
	ctx, stop := s.WatchHangup(t.Context())
	p.say(hangupRequest)
	_ = p.Close()
	<-ctx.Done()
	wantGone(t, ctx)
	stop()
	_ = s.Fail(errors.New("x"))
	if _, err := s.Next(); err != nil {
		t.Errorf("the pipelined request: %v", err)
	}
	_ = s.Fail(errors.New("x"))
	if _, err := s.Next(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

func hangupClientSendsMoreThanIsReadAhead(t *testing.T, s *Server, p scriptedPeer) {
	t.Helper()
	path := "/nix/store/" + strings.Repeat("0", 32) + "-" + strings.Repeat("n", 200)
	queries := word(31) + strs(path, path, path, path, path, path, path, path, path, path,
		path, path, path, path, path, path, path, path, path, path, path, path, path) + word(0)
	ctx, stop := s.WatchHangup(t.Context())
	go p.say(queries)
	synctest.Wait()
	if ctx.Err() != nil {
		t.Errorf("ended early: %v", context.Cause(ctx))
	}
	stop()
	_ = s.ReplyPathInfo(nil, false)
	if req, err := s.Next(); err != nil || len(req.(*QueryValidPaths).Paths) != 23 {
		t.Errorf("the pipelined request: %v, %v", req, err)
	}
}

func hangupContextOfTheCallerEnds(t *testing.T, s *Server, _ scriptedPeer) {
	t.Helper()
	parent, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ctx, stop := s.WatchHangup(parent)
	defer stop()
	<-ctx.Done()
	if !errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		t.Errorf("cause = %v", context.Cause(ctx))
	}
}

func hangupOurOwnEndCloses(t *testing.T, s *Server, _ scriptedPeer) {
	t.Helper()
	_, stop := s.WatchHangup(t.Context())
	stop()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// What came with the request is buffered already; the client's end is seen behind it.
func TestWatchHangupWithBytesBuffered(t *testing.T) {
	t.Parallel()
	request := word(26) + str(pathA)
	closes := make(chan struct{})
	s := accept(t, ServerOptions{}, func(p scriptedPeer) {
		p.say(request + request)
		<-closes
		_ = p.Close()
	})
	if _, err := s.Next(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := s.WatchHangup(t.Context())
	defer stop()
	if ctx.Err() != nil {
		t.Error(context.Cause(ctx))
	}
	close(closes)
	<-ctx.Done()
	wantGone(t, ctx)
	stop()
	_ = s.ReplyPathInfo(nil, false)
	if _, err := s.Next(); err != nil {
		t.Errorf("the second request: %v", err)
	}
}
