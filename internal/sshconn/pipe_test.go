// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshconn

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
	"testing/synctest"
)

func randomBytes(n int) []byte {
	b := make([]byte, n)
	random := rand.NewChaCha8([32]byte{7})
	_, _ = random.Read(b)
	return b
}

func TestPipe(t *testing.T) {
	t.Parallel()
	content := randomBytes(3*maxPipe + 17)
	write := map[string]func(*pipe) error{
		"at once": func(p *pipe) error { _, err := p.Write(content); return err },
		"in small pieces": func(p *pipe) error {
			for rest := content; len(rest) > 0; {
				n, err := p.Write(rest[:min(777, len(rest))])
				if err != nil {
					return err
				}
				rest = rest[n:]
			}
			return nil
		},
		"from a reader": func(p *pipe) error {
			_, err := p.ReadFrom(iotest.HalfReader(bytes.NewReader(content)))
			return err
		},
	}
	read := map[string]func(*pipe) ([]byte, error){
		"at once":         func(p *pipe) ([]byte, error) { return io.ReadAll(p) },
		"in small pieces": func(p *pipe) ([]byte, error) { return io.ReadAll(iotest.HalfReader(struct{ io.Reader }{p})) },
		"into a writer": func(p *pipe) ([]byte, error) {
			var b bytes.Buffer
			_, err := p.WriteTo(&b)
			return b.Bytes(), err
		},
	}
	for written, write := range write {
		for taken, read := range read {
			t.Run(written+", "+taken, func(t *testing.T) {
				t.Parallel()
				p := newPipe()
				go func() {
					err := write(p)
					p.closeWrite(err)
				}()
				got, err := read(p)
				if err != nil || !bytes.Equal(got, content) {
					t.Errorf("%d bytes, %v, want %d", len(got), err, len(content))
				}
				if n, err := p.Read(make([]byte, 1)); n != 0 || err != io.EOF {
					t.Errorf("after the end: %d, %v", n, err)
				}
				if _, err := p.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
					t.Errorf("write after the end: %v", err)
				}
			})
		}
	}
}

func TestPipeEnds(t *testing.T) {
	t.Parallel()
	lost := errors.New("connection lost")
	tests := map[string]struct {
		end func(*pipe)
		// left is what the reader still gets before readErr.
		left              string
		readErr, writeErr error
	}{
		"clean":             {func(p *pipe) { p.closeWrite(nil) }, "abc", io.EOF, io.ErrClosedPipe},
		"lost":              {func(p *pipe) { p.closeWrite(lost) }, "abc", lost, io.ErrClosedPipe},
		"reader leaves":     {func(p *pipe) { p.closeRead(lost) }, "", io.ErrClosedPipe, lost},
		"the first counts":  {func(p *pipe) { p.closeWrite(lost); p.closeWrite(nil) }, "abc", lost, io.ErrClosedPipe},
		"ended, then left":  {func(p *pipe) { p.closeWrite(nil); p.closeRead(lost) }, "", io.ErrClosedPipe, io.ErrClosedPipe},
		"left, then closed": {func(p *pipe) { p.closeRead(lost); p.closeWrite(nil) }, "", io.ErrClosedPipe, lost},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPipe()
			if _, err := p.Write([]byte("abc")); err != nil {
				t.Fatal(err)
			}
			tc.end(p)
			if _, err := p.Write([]byte("d")); !errors.Is(err, tc.writeErr) {
				t.Errorf("write: %v, want %v", err, tc.writeErr)
			}
			if _, err := p.ReadFrom(bytes.NewReader([]byte("d"))); !errors.Is(err, tc.writeErr) {
				t.Errorf("read from: %v, want %v", err, tc.writeErr)
			}
			var got []byte
			var err error
			for b := make([]byte, 2); err == nil; {
				var n int
				n, err = p.Read(b)
				got = append(got, b[:n]...)
			}
			if string(got) != tc.left || !errors.Is(err, tc.readErr) {
				t.Errorf("read %q, %v, want %q, %v", got, err, tc.left, tc.readErr)
			}
		})
	}
}

// Whoever waits is woken by the other end.
func TestPipeWakes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPipe()
		ended := make(chan error)
		go func() {
			_, err := p.Read(make([]byte, 1))
			ended <- err
		}()
		synctest.Wait()
		p.closeRead(io.ErrClosedPipe)
		if err := <-ended; !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("read: %v", err)
		}
		p = newPipe()
		go func() {
			_, err := p.Write(make([]byte, 2*maxPipe))
			ended <- err
		}()
		synctest.Wait()
		p.closeRead(errEnded)
		if err := <-ended; !errors.Is(err, errEnded) {
			t.Errorf("write: %v", err)
		}
	})
}

// A failing writer leaves what it has not taken in the pipe.
func TestPipeIntoAFailingWriter(t *testing.T) {
	t.Parallel()
	p := newPipe()
	if _, err := p.Write([]byte("abc")); err != nil {
		t.Fatal(err)
	}
	full := errors.New("full")
	if n, err := p.WriteTo(writerFunc(func([]byte) (int, error) { return 1, full })); n != 1 || !errors.Is(err, full) {
		t.Errorf("WriteTo = %d, %v", n, err)
	}
	p.closeWrite(nil)
	if got, err := io.ReadAll(p); err != nil || string(got) != "bc" {
		t.Errorf("left: %q, %v", got, err)
	}
	if n, err := p.ReadFrom(iotest.ErrReader(full)); n != 0 || !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("ReadFrom = %d, %v", n, err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
