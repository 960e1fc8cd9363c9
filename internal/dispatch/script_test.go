// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"bytes"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

// Codes of operations, as words on the wire.
const (
	opSetOptions  = uint64(daemon.OpSetOptions)
	opPathInfo    = uint64(daemon.OpQueryPathInfo)
	opValidPaths  = uint64(daemon.OpQueryValidPaths)
	opBuild       = uint64(daemon.OpBuildDerivation)
	opNAR         = uint64(daemon.OpNARFromPath)
	opAddMultiple = uint64(daemon.OpAddMultipleToStore)
)

// encode returns what write writes.
func encode(write func(*wire.Writer)) []byte {
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	write(w)
	_ = w.Flush() // a bytes.Buffer takes everything
	return b.Bytes()
}

// Requests as any client could send them, however wrong.

func askValid(substitute bool, paths ...string) []byte {
	return encode(func(w *wire.Writer) {
		w.Uint64(opValidPaths)
		w.Strings(paths)
		w.Bool(substitute)
	})
}

func askFor(operation uint64, path string) []byte {
	return encode(func(w *wire.Writer) {
		w.Uint64(operation)
		w.String(path)
	})
}

func askBuild(d derivation, mode uint64) []byte {
	return encode(func(w *wire.Writer) {
		w.Uint64(opBuild)
		w.String(d.path)
		w.Uint64(uint64(len(d.Outputs)))
		for _, o := range d.Outputs {
			for _, s := range []string{o.Name, o.Path, o.HashAlgo, o.Hash} {
				w.String(s)
			}
		}
		w.Strings(d.InputSources)
		w.String(d.Platform)
		w.String(d.Builder)
		w.Strings(d.Args)
		w.Uint64(uint64(len(d.Env)))
		for _, v := range d.Env {
			w.String(v.Name)
			w.String(v.Value)
		}
		w.Uint64(mode)
	})
}

// uploadOf is a whole operation 44 in frames of the size. It announces count files.
func uploadOf(count uint64, frame int, files ...file) []byte {
	return encode(func(w *wire.Writer) {
		content := encode(func(w *wire.Writer) {
			w.Uint64(count)
			for _, f := range files {
				w.String(f.info.Path)
				w.String(f.info.Deriver)
				w.String(f.info.NARHash)
				w.Strings(f.info.References)
				w.Uint64(0)
				w.Uint64(f.info.NARSize)
				w.Bool(false)
				w.Strings(f.info.Signatures)
				w.String(f.info.CA)
				_, _ = w.Write(f.nar)
			}
		})
		w.Uint64(opAddMultiple)
		w.Bool(false)
		w.Bool(true)
		for len(content) > 0 {
			n := min(frame, len(content))
			w.Uint64(uint64(n))
			_, _ = w.Write(content[:n])
			content = content[n:]
		}
		w.Uint64(0)
	})
}

// attacker is a connection whose steps run one after the other in a goroutine of its
// own, whatever is answered; another one reads.
type attacker struct {
	conn  net.Conn
	steps []func(*attacker)
	mu    sync.Mutex
	heard bytes.Buffer
	deaf  time.Time // until when nothing is read
}

func (a *attacker) then(step func(*attacker)) { a.steps = append(a.steps, step) }

func (a *attacker) send(b []byte) {
	a.then(func(a *attacker) { _, _ = a.conn.Write(b) }) // it may be closed already
}

// run takes all steps, waits a while for answers, and leaves.
func (a *attacker) run() {
	var reader sync.WaitGroup
	reader.Go(a.listen)
	for _, step := range a.steps {
		step(a)
	}
	time.Sleep(time.Minute)
	a.conn.Close()
	reader.Wait()
}

func (a *attacker) listen() {
	buffer := make([]byte, 4096)
	for {
		a.mu.Lock()
		pause := time.Until(a.deaf)
		a.mu.Unlock()
		if pause > 0 {
			time.Sleep(pause)
			continue
		}
		n, err := a.conn.Read(buffer)
		a.mu.Lock()
		a.heard.Write(buffer[:n])
		a.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (a *attacker) text() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.heard.String()
}

// tape hands out the bytes of a fuzz input, and zeroes behind its end.
type tape struct{ rest []byte }

func (t *tape) next() byte {
	if len(t.rest) == 0 {
		return 0
	}
	b := t.rest[0]
	t.rest = t.rest[1:]
	return b
}

func (t *tape) take(n int) []byte {
	n = min(n, len(t.rest))
	b := t.rest[:n]
	t.rest = t.rest[n:]
	return b
}

// world is what the steps of a fuzz input pick from.
type world struct {
	files       []file
	derivations []derivation
	paths       []string
}

// victim is the build of somebody else, whose output nobody may see.
var victim = newDerivation("victim")

func newWorld() *world {
	a, b, c := newFile("a", "A"), newFile("b", "B"), newFile("c", strings.Repeat("C", 5000))
	forged := newFile("forged", "F")
	forged.info.NARHash = a.info.NARHash
	w := &world{files: []file{a, b, c, forged}}
	w.derivations = []derivation{
		newDerivation("plain"), newDerivation("with-a", a), newDerivation("with-all", a, b, c),
		newDerivation("fails"), newDerivation("hangs"), newDerivation("floods"),
		eight(), newDerivation("needs").requiring("kvm"),
		newDerivation("lacking", newFile("never sent", "")), newDerivation("large"),
	}
	for _, d := range w.derivations {
		w.paths = append(w.paths, d.Outputs[0].Path)
	}
	for _, f := range w.files {
		w.paths = append(w.paths, f.info.Path)
	}
	w.paths = append(w.paths, victim.Outputs[0].Path, victim.path, "/etc/passwd")
	return w
}

// some picks files by the bits of b.
func (w *world) some(b byte) []file {
	var out []file
	for i, f := range w.files {
		if b>>i&1 != 0 {
			out = append(out, f)
		}
	}
	return out
}

func pathsOf(files []file) []string {
	var out []string
	for _, f := range files {
		out = append(out, f.info.Path)
	}
	return out
}

// step adds to a connection what the next bytes of the tape mean.
func (w *world) step(t *tape, a *attacker, action byte) {
	arg := t.next()
	files := w.some(arg)
	switch action {
	case 0:
		a.send(askValid(arg&0x80 != 0, pathsOf(files)...))
	case 1:
		a.send(uploadOf(uint64(len(files)), 1+int(arg)*16, files...))
	case 2:
		a.send(uploadOf(uint64(arg>>4), 64, files...))
	case 3:
		a.send(askBuild(w.derivations[int(arg)%len(w.derivations)], 0))
	case 4:
		a.send(askBuild(w.derivations[int(arg)%len(w.derivations)], uint64(arg>>6)))
	case 5:
		a.send(askFor(opPathInfo, w.paths[int(arg)%len(w.paths)]))
	case 6:
		a.send(askFor(opNAR, w.paths[int(arg)%len(w.paths)]))
	case 7:
		a.send(words(opSetOptions, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0))
	case 8:
		a.send(words(uint64(arg), 0, 0))
	case 9:
		a.send(t.take(int(arg)))
	case 10:
		a.then(func(*attacker) { time.Sleep(time.Duration(arg) * 10 * time.Millisecond) })
	case 11:
		a.then(func(*attacker) { time.Sleep(time.Duration(arg) * time.Second) })
	case 12:
		a.then(func(a *attacker) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.deaf = time.Now().Add(time.Duration(arg) * time.Second)
		})
	case 13:
		a.then(func(a *attacker) { a.conn.Close() })
	case 14: // cut off anywhere
		whole := uploadOf(uint64(len(files)), 1000, files...)
		a.send(whole[:len(whole)*int(arg)/256])
	case 15:
		a.send(words([]uint64{opValidPaths, opPathInfo, opBuild, opSetOptions, opAddMultiple}[arg%5], 1<<(arg>>2)))
	}
}

// discardAll reads a connection to its end.
func discardAll(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

func TestRequestsAsClientsSendThem(t *testing.T) {
	t.Parallel()
	a := newFile("a", "A")
	stream := bytes.Join([][]byte{
		greeting(0x123), askValid(true, a.info.Path), uploadOf(1, 7, a), askBuild(newDerivation("out", a), 0),
		askFor(opPathInfo, a.info.Path), askFor(opNAR, a.info.Path),
	}, nil)
	near, far := net.Pipe()
	defer near.Close()
	go discardAll(near)
	go func() { _, _ = near.Write(stream) }()
	s, err := daemon.Accept(t.Context(), far, daemon.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, want := range []daemon.Operation{31, 44, 36, 26, 38} {
		req, err := s.Next()
		if err != nil || req.Operation() != want {
			t.Fatalf("request %v, %v, want %v", req, err, want)
		}
		if up, ok := req.(*daemon.AddMultipleToStore); ok {
			info, nar, err := up.Next()
			if err != nil || info.Path != a.info.Path {
				t.Fatalf("upload of %v, %v", info, err)
			}
			if got, err := io.ReadAll(nar); err != nil || !bytes.Equal(got, a.nar) {
				t.Fatalf("archive %q, %v", got, err)
			}
			if _, _, err := up.Next(); err != io.EOF {
				t.Fatalf("after the last: %v", err)
			}
			if err := s.ReplyDone(); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := s.Fail(io.EOF); err != nil {
			t.Fatal(err)
		}
	}
}
