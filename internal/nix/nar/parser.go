// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nar

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
)

const (
	// magic is the string that every NAR starts with.
	magic = "nix-archive-1"
	// maxName is the longest name of a directory entry, as in every file system.
	maxName = 255
	// maxTarget bounds the target of a symbolic link; Linux allows 4095 bytes.
	maxTarget = 16 << 10
	// maxDepth bounds the nesting of directories, and so the parser's memory.
	maxDepth = 4096
	// maxKeyword is longer than any keyword of the format.
	maxKeyword = 16
)

// state says which token comes next.
type state uint8

const (
	atMagic state = iota
	atOpen
	atTypeKey
	atType
	atRegular     // "executable", "contents" or ")"
	atExecutable  // the empty string after "executable"
	atContentsKey // "contents" or ")"
	atContents    // length word of the contents
	inContents    // contents, then their padding
	atTargetKey
	atTarget
	atEntry // "entry" or ")"
	atEntryOpen
	atNameKey
	atName
	atNodeKey
	atClose      // ")" of a node
	atEntryClose // ")" of a directory entry
	atEnd
)

// expected names, for states that admit one keyword, that keyword and what
// follows it.
var expected = [atEnd]struct {
	keyword string
	next    state
}{
	atMagic:      {magic, atOpen},
	atOpen:       {"(", atTypeKey},
	atTypeKey:    {"type", atType},
	atExecutable: {"", atContentsKey},
	atTargetKey:  {"target", atTarget},
	atEntryOpen:  {"(", atNameKey},
	atNameKey:    {"name", atName},
	atNodeKey:    {"node", atOpen},
}

// parser follows the structure of a NAR over slices of it.
type parser struct {
	state state
	// content counts bytes of file contents still to come, pad the zeros after.
	content int64
	pad     int
	// names holds, for each open directory, the name of its latest entry.
	names []string
	// token is the size of the next token when it is larger than what is there.
	token int
}

func (p *parser) done() bool { return p.state == atEnd }

// need is how many bytes feed must be given at least to make progress.
func (p *parser) need() int {
	switch {
	case p.state == inContents && p.content > 0:
		return 1
	case p.state == inContents:
		return p.pad
	case p.token > 0:
		return p.token
	}
	return 8
}

// feed parses as many whole tokens from b as there are and returns their size.
func (p *parser) feed(b []byte) (int, error) {
	n := 0
	for p.state != atEnd {
		k, err := p.step(b[n:])
		n += k
		if err != nil {
			return n, err
		}
		if k == 0 {
			break
		}
	}
	return n, nil
}

// step parses one token, or some file contents. It returns 0 when b is too short.
func (p *parser) step(b []byte) (int, error) {
	switch p.state {
	case inContents:
		return p.contents(b)
	case atContents:
		return p.contentsLength(b)
	}
	s, size, err := p.str(b)
	if err != nil || size == 0 {
		return 0, err
	}
	return size, p.accept(s)
}

func (p *parser) contentsLength(b []byte) (int, error) {
	if len(b) < 8 {
		return 0, nil
	}
	v := binary.LittleEndian.Uint64(b)
	if v > math.MaxInt64-8 {
		return 0, fmt.Errorf("a file of %d bytes is too large", v)
	}
	p.content, p.pad, p.state = int64(v), int(-v&7), inContents
	p.endContents()
	return 8, nil
}

func (p *parser) contents(b []byte) (int, error) {
	if p.content > 0 {
		n := min(p.content, int64(len(b)))
		p.content -= n
		p.endContents()
		return int(n), nil
	}
	if len(b) < p.pad {
		return 0, nil
	}
	n := p.pad
	if !zero(b[:n]) {
		return 0, errPadding
	}
	p.pad = 0
	p.endContents()
	return n, nil
}

func (p *parser) endContents() {
	if p.content == 0 && p.pad == 0 {
		p.state = atClose
	}
}

var errPadding = errors.New("padding is not zero")

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// str takes one padded string from b; size is 0 when b does not hold all of it.
func (p *parser) str(b []byte) (s []byte, size int, err error) {
	if len(b) < 8 {
		return nil, 0, nil
	}
	limit := maxKeyword
	switch p.state {
	case atName:
		limit = maxName
	case atTarget:
		limit = maxTarget
	}
	v := binary.LittleEndian.Uint64(b)
	if v > uint64(limit) {
		return nil, 0, fmt.Errorf("%s has %d bytes, more than %d", p.state, v, limit)
	}
	n := int(v)
	size = 8 + n + -n&7
	if len(b) < size {
		p.token = size
		return nil, 0, nil
	}
	p.token = 0
	if !zero(b[8+n : size]) {
		return nil, 0, errPadding
	}
	return b[8 : 8+n], size, nil
}

// accept moves to the state after the string s.
func (p *parser) accept(s []byte) error {
	if want := expected[p.state]; want.next != atMagic {
		if string(s) != want.keyword {
			return fmt.Errorf("found %q where %q must stand", s, want.keyword)
		}
		p.state = want.next
		return nil
	}
	switch p.state {
	case atType:
		return p.nodeType(s)
	case atTarget:
		if len(s) == 0 || strings.IndexByte(string(s), 0) >= 0 {
			return fmt.Errorf("symbolic link has the target %q", s)
		}
		p.state = atClose
		return nil
	case atName:
		return p.entryName(s)
	case atRegular, atContentsKey:
		return p.regular(s)
	case atEntry:
		return p.entry(s)
	}
	// atClose, atEntryClose
	if string(s) != ")" {
		return fmt.Errorf("found %q where \")\" must stand", s)
	}
	p.close()
	return nil
}

func (p *parser) nodeType(s []byte) error {
	switch string(s) {
	case "regular":
		p.state = atRegular
	case "symlink":
		p.state = atTargetKey
	case "directory":
		if len(p.names) == maxDepth {
			return fmt.Errorf("directories are nested more than %d deep", maxDepth)
		}
		p.names = append(p.names, "")
		p.state = atEntry
	default:
		return fmt.Errorf("unknown file type %q", s)
	}
	return nil
}

// regular accepts what may stand in a regular file. Files without "contents"
// occur in archives of very old Nix and are empty.
func (p *parser) regular(s []byte) error {
	switch {
	case string(s) == "contents":
		p.state = atContents
	case string(s) == "executable" && p.state == atRegular:
		p.state = atExecutable
	case string(s) == ")":
		p.close()
	default:
		return fmt.Errorf("found %q in a regular file", s)
	}
	return nil
}

func (p *parser) entry(s []byte) error {
	switch string(s) {
	case "entry":
		p.state = atEntryOpen
	case ")":
		p.names = p.names[:len(p.names)-1]
		p.close()
	default:
		return fmt.Errorf("found %q in a directory", s)
	}
	return nil
}

func (p *parser) entryName(s []byte) error {
	name := string(s)
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("directory entry has the name %q", name)
	}
	last := &p.names[len(p.names)-1]
	if name <= *last {
		return fmt.Errorf("directory entries %q and %q are not in order", *last, name)
	}
	*last = name
	p.state = atNodeKey
	return nil
}

// close moves to the state after the ")" of a node or of a directory entry.
func (p *parser) close() {
	switch {
	case p.state == atEntryClose:
		p.state = atEntry
	case len(p.names) == 0:
		p.state = atEnd
	default:
		p.state = atEntryClose
	}
}

// String names what stands at a state, for errors.
func (s state) String() string {
	switch s {
	case atName:
		return "name of a directory entry"
	case atTarget:
		return "target of a symbolic link"
	}
	return "keyword"
}
