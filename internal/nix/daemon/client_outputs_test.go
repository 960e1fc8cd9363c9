// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

// Parts of what a daemon answers to a build and the questions behind it.
var (
	built        = word(stderrLast) + words(0) + str("") + words(0, 0, 0, 0, 0)
	outputInfo   = word(stderrLast) + word(1) + str("") + str(hashA) + strs() + words(0, 3, 0) + strs() + str("")
	noOutputInfo = word(stderrLast) + word(0)
)

func refused(text string) string {
	return word(stderrError) + str("Error") + word(0) + str("Error") + str(text) + words(0, 0)
}

// flight is the request for a build and its outputs.
func flight(drvBytes string, outputs ...string) string {
	request := word(36) + str(pathDrv) + drvBytes + word(0)
	for _, path := range outputs {
		request += word(26) + str(path) + word(38) + str(path)
	}
	return request
}

// taken collects what BuildOutputs hands over.
type taken struct {
	infos    []PathInfo
	archives []*bytes.Buffer
}

func (k *taken) take(info PathInfo) (io.Writer, error) {
	k.infos = append(k.infos, info)
	k.archives = append(k.archives, &bytes.Buffer{})
	return k.archives[len(k.archives)-1], nil
}

func TestBuildOutputs(t *testing.T) {
	t.Parallel()
	drv, drvBytes := sampleDerivation()
	for name, greeting := range map[string]string{
		"1.35": word(0x123) + str("2.15.1") + word(1), "1.34": word(0x122) + str("2.8.0"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := play(t, func(p scriptedPeer) {
				p.hear(32)
				p.say(serverMagic + greeting + word(stderrLast))
				// Nothing is answered before all was asked.
				answer := word(stderrNext) + str("line\n") + built +
					outputInfo + word(stderrLast) + fileNAR("out") + outputInfo + word(stderrLast) + fileNAR("dev")
				exchange(t, flight(drvBytes, pathA, pathB), answer)(p)
				exchange(t, word(31)+strs()+word(0), word(stderrLast)+strs(pathA))(p)
			})
			c, err := NewClient(t.Context(), conn, ClientOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var got taken
			lines := 0
			success := 0
			result, err := c.BuildOutputs(t.Context(), pathDrv, drv, BuildNormal, func(Message) error { lines++; return nil },
				Outputs{Paths: []string{pathA, pathB}, Built: func() { success += 1 + len(got.infos) }, Take: got.take})
			if err != nil || !result.Status.Success() || lines != 1 || success != 1 {
				t.Fatalf("%+v, %v, %d lines, %d times told of success", result, err, lines, success)
			}
			want := []PathInfo{{Path: pathA, NARHash: hashA, NARSize: 3}, {Path: pathB, NARHash: hashA, NARSize: 3}}
			if diff := cmp.Diff(want, got.infos); diff != "" {
				t.Errorf("infos (-want +got):\n%s", diff)
			}
			if got.archives[0].String() != fileNAR("out") || got.archives[1].String() != fileNAR("dev") {
				t.Errorf("archives %q and %q", got.archives[0], got.archives[1])
			}
			if paths, err := c.QueryValidPaths(t.Context(), nil, false, nil); err != nil || len(paths) != 1 {
				t.Errorf("the next request: %v, %v", paths, err)
			}
		})
	}
}

// A daemon that builds does not read, so not everything may be asked at once.
func TestBuildOutputsInFlights(t *testing.T) {
	t.Parallel()
	drv, drvBytes := sampleDerivation()
	var outputs []string
	for i := range 2*outputsPerFlight + 1 {
		outputs = append(outputs, fmt.Sprintf("/nix/store/%032d-out", i))
	}
	c, _ := connect(t, ClientOptions{}, func(p scriptedPeer) {
		first := flight(drvBytes, outputs[:outputsPerFlight]...)
		answer := strings.Repeat(outputInfo+word(stderrLast)+fileNAR("x"), outputsPerFlight)
		exchange(t, first, built+answer)(p)
		exchange(t, flight("", outputs[outputsPerFlight:2*outputsPerFlight]...)[len(flight("")):], answer)(p)
		exchange(t, flight("", outputs[2*outputsPerFlight])[len(flight("")):], outputInfo+word(stderrLast)+fileNAR("x"))(p)
	})
	var got taken
	if _, err := c.BuildOutputs(t.Context(), pathDrv, drv, BuildNormal, nil, Outputs{Paths: outputs, Take: got.take}); err != nil {
		t.Fatal(err)
	}
	if len(got.infos) != len(outputs) || got.infos[len(outputs)-1].Path != outputs[len(outputs)-1] {
		t.Errorf("%d outputs, want %d in their order", len(got.infos), len(outputs))
	}
}

// Whatever goes wrong, nothing more is read and the connection is closed.
func TestBuildOutputsEndsTheConnection(t *testing.T) {
	t.Parallel()
	tooBig := errors.New("too big")
	archive := fileNAR("some contents")
	remote := func(text string) func(*testing.T, error) {
		return func(t *testing.T, err error) {
			t.Helper()
			if e, ok := errors.AsType[*RemoteError](err); !ok || e.Message != text {
				t.Errorf("error = %v, want the daemon's %q", err, text)
			}
		}
	}
	is := func(want error) func(*testing.T, error) {
		return func(t *testing.T, err error) {
			t.Helper()
			if !errors.Is(err, want) {
				t.Errorf("error = %v, want %v", err, want)
			}
		}
	}
	tests := map[string]struct {
		answer string
		check  func(*testing.T, error)
		// takes is how many outputs are handed over.
		takes  int
		refuse bool
		// status is that of the result where there is no error.
		status BuildStatus
	}{
		"failed build": {
			answer: word(stderrLast) + words(3) + str("exit code 1") + words(0, 0, 0, 0, 0) + noOutputInfo + refused("not valid"),
			status: StatusPermanentFailure,
		},
		"refused build": {answer: refused("not privileged"), check: remote("not privileged")},
		"output missing": {
			answer: built + noOutputInfo,
			check: func(t *testing.T, err error) {
				t.Helper()
				if e, ok := errors.AsType[*MissingOutputError](err); !ok || e.Path != pathA {
					t.Errorf("error = %v, want that %s is missing", err, pathA)
				}
			},
		},
		"info refused":      {answer: built + refused("database is locked"), check: remote("database is locked")},
		"not wanted":        {answer: built + outputInfo, refuse: true, takes: 1, check: is(tooBig)},
		"archive refused":   {answer: built + outputInfo + refused("not valid"), takes: 1, check: remote("not valid")},
		"late error":        {answer: built + outputInfo + word(stderrLast) + refused("not valid"), takes: 1, check: remote("not valid")},
		"error in the NAR":  {answer: built + outputInfo + word(stderrLast) + archive[:72] + refused("read error"), takes: 1, check: remote("read error")},
		"error in a file":   {answer: built + outputInfo + word(stderrLast) + archive[:96] + refused("read error"), takes: 1, check: is(wire.ErrMalformed)},
		"end in the NAR":    {answer: built + outputInfo + word(stderrLast) + archive[:100], takes: 1, check: is(io.ErrUnexpectedEOF)},
		"end in the result": {answer: built[:20], check: is(io.ErrUnexpectedEOF)},
		"end in the second": {answer: built + outputInfo + word(stderrLast) + archive + outputInfo[:50], takes: 1, check: is(io.ErrUnexpectedEOF)},
	}
	drv, drvBytes := sampleDerivation()
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, conn := connect(t, ClientOptions{}, func(p scriptedPeer) {
				exchange(t, flight(drvBytes, pathA, pathB), tc.answer)(p)
				_ = p.Close()
			})
			takes := 0
			result, err := c.BuildOutputs(t.Context(), pathDrv, drv, BuildNormal, nil, Outputs{
				Paths: []string{pathA, pathB},
				Take: func(PathInfo) (io.Writer, error) {
					takes++
					if tc.refuse {
						return nil, tooBig
					}
					return io.Discard, nil
				},
			})
			switch {
			case tc.check != nil:
				tc.check(t, err)
				if afterResult := strings.HasPrefix(tc.answer, built); (result != nil) != afterResult {
					t.Errorf("result %+v, want it along with the error: %t", result, afterResult)
				}
			case err != nil || result.Status != tc.status:
				t.Errorf("result %+v, %v, want %s", result, err, tc.status)
			}
			if takes != tc.takes {
				t.Errorf("%d outputs were handed over, want %d", takes, tc.takes)
			}
			if _, err := conn.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("the connection is still open: %v", err)
			}
			if _, err := c.QueryValidPaths(t.Context(), nil, false, nil); !errors.Is(err, ErrClosed) {
				t.Errorf("the next call: %v, want ErrClosed", err)
			}
		})
	}
}

func TestBuildOutputsContextEnds(t *testing.T) {
	t.Parallel()
	drv, drvBytes := sampleDerivation()
	for name, answer := range map[string]string{
		"while it builds":        "",
		"between the answers":    built,
		"in the middle of a NAR": built + outputInfo + word(stderrLast) + fileNAR("some contents")[:100],
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c, conn := connect(t, ClientOptions{}, func(p scriptedPeer) {
					exchange(t, flight(drvBytes, pathA), answer)(p)
					hearAll(p)
				})
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				var got taken
				_, err := c.BuildOutputs(ctx, pathDrv, drv, BuildNormal, nil, Outputs{Paths: []string{pathA}, Take: got.take})
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("error = %v", err)
				}
				if _, err := conn.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
					t.Errorf("the connection is still open: %v", err)
				}
			})
		})
	}
}
