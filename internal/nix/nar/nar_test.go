// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nar_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"nixbuilder.io/nix-builder-operator/internal/nix/nar"
	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

// archive encodes strings one after the other, which is all that a NAR is.
func archive(tokens ...string) string {
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	for _, s := range tokens {
		w.String(s)
	}
	_ = w.Flush()
	return b.String()
}

// file is the node of a regular file.
func file(contents string) []string {
	return []string{"(", "type", "regular", "contents", contents, ")"}
}

// dir is the node of a directory; children alternate name and node.
func dir(entries ...[]string) []string {
	node := []string{"(", "type", "directory"}
	for _, e := range entries {
		node = append(node, e...)
	}
	return append(node, ")")
}

func entry(name string, node []string) []string {
	return append(append([]string{"entry", "(", "name", name, "node"}, node...), ")")
}

func whole(node []string) string { return archive(append([]string{"nix-archive-1"}, node...)...) }

func valid() map[string]string {
	deep := file("x")
	for i := range 100 {
		deep = dir(entry(fmt.Sprint(i), deep))
	}
	var many [][]string
	for i := range 5000 {
		many = append(many, entry(fmt.Sprintf("%05d", i), file(strings.Repeat("y", i%50))))
	}
	return map[string]string{
		"empty file":            whole(file("")),
		"file":                  whole(file("hello\n")),
		"file of whole words":   whole(file("12345678")),
		"executable":            whole([]string{"(", "type", "regular", "executable", "", "contents", "#!", ")"}),
		"file without contents": whole([]string{"(", "type", "regular", ")"}),
		"executable without":    whole([]string{"(", "type", "regular", "executable", "", ")"}),
		"link":                  whole([]string{"(", "type", "symlink", "target", "../x", ")"}),
		"long link":             whole([]string{"(", "type", "symlink", "target", strings.Repeat("t", 16<<10), ")"}),
		"empty directory":       whole(dir()),
		"directory":             whole(dir(entry("a", file("1")), entry("b", dir(entry("a", dir()))), entry("c", file("3")))),
		"deep directory":        whole(deep),
		"large directory":       whole(dir(many...)),
		"large file":            whole(file(strings.Repeat("z", 5*wire.BufferSize+3))),
		"file of buffer size":   whole(file(strings.Repeat("z", wire.BufferSize))),
	}
}

var sources = map[string]func(io.Reader) io.Reader{
	"at once":      func(r io.Reader) io.Reader { return r },
	"byte by byte": iotest.OneByteReader,
	"half by half": iotest.HalfReader,
}

func TestCopy(t *testing.T) {
	t.Parallel()
	for name, input := range valid() {
		for how, source := range sources {
			t.Run(name+"/"+how, func(t *testing.T) {
				t.Parallel()
				r := wire.NewReader(source(strings.NewReader(input + "behind")))
				var b bytes.Buffer
				n, err := nar.Copy(&b, r)
				if err != nil || n != int64(len(input)) || b.String() != input {
					t.Errorf("Copy = %d, %v, same bytes: %t; want %d bytes", n, err, b.String() == input, len(input))
				}
				rest, err := io.ReadAll(r)
				if string(rest) != "behind" || err != nil {
					t.Errorf("behind the archive: %q, %v", rest, err)
				}
			})
		}
	}
}

func TestRead(t *testing.T) {
	t.Parallel()
	for name, input := range valid() {
		for how, source := range sources {
			for _, size := range []int{1, 7, 4096, 2 * wire.BufferSize} {
				t.Run(fmt.Sprintf("%s/%s/%d", name, how, size), func(t *testing.T) {
					t.Parallel()
					src := wire.NewReader(source(strings.NewReader(input + "behind")))
					r := nar.NewReader(src, int64(len(input)))
					var b bytes.Buffer
					// The wrapper hides WriteTo, so that Read is what is used.
					_, err := io.CopyBuffer(&b, struct{ io.Reader }{r}, make([]byte, size))
					if err != nil || b.String() != input || r.Size() != int64(len(input)) {
						t.Errorf("read %d of %d bytes: %v", b.Len(), len(input), err)
					}
					if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
						t.Errorf("Read behind the end = %d, %v", n, err)
					}
					rest, err := io.ReadAll(src)
					if string(rest) != "behind" || err != nil {
						t.Errorf("behind the archive: %q, %v", rest, err)
					}
				})
			}
		}
	}
}

func TestCopyReadsOtherSourcesToo(t *testing.T) {
	t.Parallel()
	input := whole(file("x"))
	if n, err := nar.Copy(io.Discard, strings.NewReader(input)); err != nil || n != int64(len(input)) {
		t.Errorf("Copy = %d, %v", n, err)
	}
}

func TestMalformed(t *testing.T) {
	t.Parallel()
	badPadding := []byte(whole(file("Q")))
	badPadding[bytes.IndexByte(badPadding, 'Q')+1] = 1
	badKeyword := []byte(archive("nix-archive-1"))
	badKeyword[len(badKeyword)-1] = 1
	deep := []string{"(", "type", "directory"}
	for range 4096 {
		deep = append(deep, "entry", "(", "name", "d", "node", "(", "type", "directory")
	}
	raw := func(v uint64) string { return string(binary.LittleEndian.AppendUint64(nil, v)) }
	head := archive("nix-archive-1", "(", "type", "regular", "contents")
	tests := map[string]struct{ input, want string }{
		"other magic":          {archive("nix-archive-2"), `found "nix-archive-2" where "nix-archive-1" must stand`},
		"text":                 {"error: no such path", "keyword has"},
		"keyword length -1":    {raw(math.MaxUint64), "keyword has 18446744073709551615 bytes, more than 16"},
		"contents length -1":   {head + raw(math.MaxUint64), "a file of 18446744073709551615 bytes is too large"},
		"contents length -2":   {head + raw(math.MaxUint64-1), "is too large"},
		"padding of contents":  {string(badPadding), "padding is not zero"},
		"padding of a keyword": {string(badKeyword), "padding is not zero"},
		"unknown type":         {whole([]string{"(", "type", "socket"}), `unknown file type "socket"`},
		"no type":              {whole([]string{"(", "kind"}), `found "kind" where "type" must stand`},
		"bad mark":             {whole([]string{"(", "type", "regular", "executable", "1"}), `found "1" where "" must stand`},
		"executable twice":     {whole([]string{"(", "type", "regular", "executable", "", "executable"}), `found "executable" in a regular file`},
		"contents twice":       {whole([]string{"(", "type", "regular", "contents", "", "contents"}), `found "contents" where ")" must stand`},
		"target missing":       {whole([]string{"(", "type", "symlink", ")"}), `found ")" where "target" must stand`},
		"target empty":         {whole([]string{"(", "type", "symlink", "target", ""}), `the target ""`},
		"target with NUL":      {whole([]string{"(", "type", "symlink", "target", "a\x00b"}), "target"},
		"target too long":      {whole([]string{"(", "type", "symlink", "target", strings.Repeat("t", 16<<10+1)}), "more than 16384"},
		"not an entry":         {whole([]string{"(", "type", "directory", "file"}), `found "file" in a directory`},
		"name empty":           {whole(dir(entry("", file("")))), `the name ""`},
		"name .":               {whole(dir(entry(".", file("")))), `the name "."`},
		"name ..":              {whole(dir(entry("..", file("")))), `the name ".."`},
		"name with slash":      {whole(dir(entry("a/b", file("")))), `the name "a/b"`},
		"name with NUL":        {whole(dir(entry("a\x00", file("")))), "the name"},
		"name too long":        {whole(dir(entry(strings.Repeat("n", 256), file("")))), "name of a directory entry has 256 bytes, more than 255"},
		"names not sorted":     {whole(dir(entry("b", file("")), entry("a", file("")))), `"b" and "a" are not in order`},
		"name twice":           {whole(dir(entry("a", file("")), entry("a", file("")))), "are not in order"},
		"too deep":             {whole(deep), "nested more than 4096 deep"},
	}
	for name, tc := range tests {
		for how, source := range sources {
			t.Run(name+"/"+how, func(t *testing.T) {
				t.Parallel()
				_, err := nar.Copy(io.Discard, wire.NewReader(source(strings.NewReader(tc.input))))
				if !errors.Is(err, wire.ErrMalformed) || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("error = %v, want one with %q", err, tc.want)
				}
			})
		}
	}
}

func TestTruncated(t *testing.T) {
	t.Parallel()
	input := whole(dir(entry("a", file("contents")), entry("b", []string{"(", "type", "symlink", "target", "x", ")"})))
	for n := range len(input) {
		for how, copyNAR := range map[string]func(io.Reader) error{
			"Copy": func(r io.Reader) error { _, err := nar.Copy(io.Discard, wire.NewReader(r)); return err },
			"Read": func(r io.Reader) error {
				_, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{nar.NewReader(wire.NewReader(r), math.MaxInt64)}, make([]byte, 3))
				return err
			},
		} {
			if err := copyNAR(strings.NewReader(input[:n])); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("%s of %d of %d bytes: %v", how, n, len(input), err)
			}
		}
	}
}

func TestLimit(t *testing.T) {
	t.Parallel()
	for name, input := range map[string]string{
		"announced contents": whole(file(strings.Repeat("x", 1000)))[:120],
		"entries":            whole(dir(entry("a", file("")), entry("b", file("")))),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := nar.NewReader(wire.NewReader(strings.NewReader(input)), 200)
			_, err := io.Copy(io.Discard, r)
			if !errors.Is(err, wire.ErrMalformed) || !strings.Contains(err.Error(), "larger than 200 bytes") {
				t.Errorf("error = %v", err)
			}
		})
	}
}

func TestDestinationFails(t *testing.T) {
	t.Parallel()
	full := errors.New("no space left")
	r, w := io.Pipe()
	_ = r.CloseWithError(full)
	if _, err := nar.Copy(w, strings.NewReader(whole(file("x")))); !errors.Is(err, full) {
		t.Errorf("Copy = %v, want %v", err, full)
	}
}

// TestRealArchives follows what Nix itself writes.
func TestRealArchives(t *testing.T) {
	t.Parallel()
	store, err := exec.LookPath("nix-store")
	if err != nil {
		t.Skip("nix-store is not installed: archives made by Nix are not tested")
	}
	root := t.TempDir()
	for _, d := range []string{"empty", "sub/deeper"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, contents := range map[string]string{"sub/a": "1", "sub/b": "", "sub/deeper/big": strings.Repeat("12345", 50000)} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(contents), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("sub/a", filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	want, err := exec.Command(store, "--dump", root).Output()
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	n, err := nar.Copy(&got, wire.NewReader(bytes.NewReader(want)))
	if err != nil || n != int64(len(want)) || !bytes.Equal(got.Bytes(), want) {
		t.Errorf("Copy = %d of %d bytes, %v", n, len(want), err)
	}
}

// FuzzCopy checks that reading in pieces and copying agree on any input, and that
// neither passes on a byte that the input does not have.
func FuzzCopy(f *testing.F) {
	for _, input := range valid() {
		if len(input) < 4096 {
			f.Add([]byte(input))
		}
	}
	f.Add([]byte(archive("nix-archive-1", "(", "type", "regular", "contents") + "\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Add([]byte(archive("nix-archive-1", "(", "type", "regular", "contents") + "\xff\xff\xff\xff\xff\xff\xff\x7f"))
	f.Add([]byte("\xfe\xff\xff\xff\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var copied bytes.Buffer
		n, err := nar.Copy(&copied, wire.NewReader(bytes.NewReader(data)))
		var read bytes.Buffer
		r := nar.NewReader(wire.NewReader(iotest.OneByteReader(bytes.NewReader(data))), math.MaxInt64)
		n2, err2 := io.CopyBuffer(&read, struct{ io.Reader }{r}, make([]byte, 5))
		if (err == nil) != (err2 == nil) {
			t.Errorf("Copy: %v, Read: %v", err, err2)
		}
		if err != nil {
			return
		}
		if n != n2 || !bytes.Equal(copied.Bytes(), read.Bytes()) || !bytes.HasPrefix(data, copied.Bytes()) {
			t.Errorf("Copy %d bytes, Read %d", n, n2)
		}
	})
}

// repeat is an endless source of one byte.
type repeat struct{}

func (repeat) Read(p []byte) (int, error) { return len(p), nil }

func BenchmarkCopy(b *testing.B) {
	const size = 64 << 20
	head := archive("nix-archive-1", "(", "type", "regular", "contents") + string(binary.LittleEndian.AppendUint64(nil, size))
	b.SetBytes(size)
	for b.Loop() {
		src := io.MultiReader(strings.NewReader(head), io.LimitReader(repeat{}, size), strings.NewReader(archive(")")))
		if _, err := nar.Copy(io.Discard, wire.NewReader(src)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCopySmallFiles(b *testing.B) {
	var entries [][]string
	for i := range 10000 {
		entries = append(entries, entry(fmt.Sprintf("%05d", i), file("contents of a small file")))
	}
	input := whole(dir(entries...))
	b.SetBytes(int64(len(input)))
	for b.Loop() {
		if _, err := nar.Copy(io.Discard, strings.NewReader(input)); err != nil {
			b.Fatal(err)
		}
	}
}
