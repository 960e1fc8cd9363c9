// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

func TestInPieces(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	tests := map[string]struct {
		size   int
		src    func(io.Reader) io.Reader
		pieces int
		err    error
	}{
		"nothing":        {0, nil, 1, nil},
		"small":          {100, nil, 1, nil},
		"in small reads": {2*pieceSize + 1, iotest.HalfReader, 3, nil},
		"whole pieces":   {2 * pieceSize, nil, 3, nil},
		"end with data":  {100, iotest.DataErrReader, 1, nil},
		"failing":        {100, func(r io.Reader) io.Reader { return io.MultiReader(r, iotest.ErrReader(broken)) }, 1, broken},
		"cut in a piece": {100, func(r io.Reader) io.Reader { return io.MultiReader(r, iotest.ErrReader(io.ErrUnexpectedEOF)) }, 1, io.ErrUnexpectedEOF},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			content := bytes.Repeat([]byte("x"), tc.size)
			var src io.Reader = bytes.NewReader(content)
			if tc.src != nil {
				src = tc.src(src)
			}
			var got bytes.Buffer
			pieces := 0
			err := inPieces(writerFunc(func(p []byte) (int, error) { pieces++; return got.Write(p) }), src, uint64(tc.size))
			if !errors.Is(err, tc.err) || !bytes.Equal(got.Bytes(), content) || pieces != tc.pieces {
				t.Errorf("%d bytes in %d pieces, %v; want %d bytes in %d pieces, %v", got.Len(), pieces, err, tc.size, tc.pieces, tc.err)
			}
		})
	}
}
