// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chaos

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// node is a derivation of a graph. Every byte of its output follows from what is
// here, so that the harness knows it without a build.
type node struct {
	name string
	// needs are the nodes whose outputs it reads, all of lower levels.
	needs []*node
	// level is 0 for what needs no other.
	level int
	// source is the size in bytes of a file that the client brings along.
	source int
	// padding is how many bytes the output is longer than what it tells.
	padding int
	// seconds is how long the build takes at least.
	seconds float64
	// tree makes it two outputs: a directory with a symbolic link to the first of
	// needs, and a second one. Otherwise it is one file.
	tree bool
	// mentions is how many files the second output of a tree refers to.
	mentions int

	once    sync.Once
	content []byte
}

// graph is a derivation with all that it needs, the root last.
type graph []*node

func (g graph) root() *node { return g[len(g)-1] }

// sizes of sources: mostly small, now and then a few MiB.
func drawSource(random *rand.Rand) int {
	switch random.IntN(8) {
	case 0:
		return 1<<20 + random.IntN(3<<20)
	case 1, 2:
		return 64<<10 + random.IntN(256<<10)
	default:
		return 1 + random.IntN(4<<10)
	}
}

// drawGraph makes a graph of three or four levels below the name.
func drawGraph(random *rand.Rand, name string) graph {
	var below []*node // of the levels so far
	levels := 3 + random.IntN(2)
	for level := range levels {
		width := 1 + random.IntN(3)
		switch level {
		case 0:
			width++
		case levels - 1:
			width = 1
		}
		before := below
		for i := range width {
			n := &node{
				name: fmt.Sprintf("%s-l%d-%d", name, level, i), level: level,
				seconds: 0.1 + random.Float64(), tree: random.IntN(3) == 0,
			}
			if random.IntN(4) == 0 {
				n.padding = random.IntN(2 << 20)
			}
			if level == 0 || random.IntN(3) == 0 {
				n.source = drawSource(random)
			}
			if level > 0 {
				n.needs = drawNeeds(random, before, level, level == levels-1)
			}
			below = append(below, n)
		}
	}
	root := below[len(below)-1]
	needed := map[*node]bool{}
	root.mark(needed)
	return slices.DeleteFunc(below, func(n *node) bool { return !needed[n] })
}

// mark adds the node and all that it needs.
func (n *node) mark(needed map[*node]bool) {
	needed[n] = true
	for _, need := range n.needs {
		need.mark(needed)
	}
}

// drawNeeds picks what a node needs: one of the level right below at least, all of
// that for the root.
func drawNeeds(random *rand.Rand, below []*node, level int, root bool) []*node {
	var needs, others []*node
	for _, n := range below {
		if n.level == level-1 {
			needs = append(needs, n)
		} else {
			others = append(others, n)
		}
	}
	if !root {
		needs = needs[:1+random.IntN(len(needs))]
	}
	if len(others) > 0 && random.IntN(2) == 0 {
		needs = append(needs, others[random.IntN(len(others))])
	}
	return needs
}

// sourceBytes is the file that the client brings along: nothing that compresses.
func (n *node) sourceBytes() []byte {
	var seed [32]byte
	copy(seed[:], n.name)
	binary.LittleEndian.PutUint64(seed[24:], uint64(n.source))
	data := make([]byte, n.source)
	_, _ = rand.NewChaCha8(seed).Read(data) // never fails
	return data
}

// want is the main file of the output.
func (n *node) want() []byte {
	n.once.Do(func() {
		var b bytes.Buffer
		fmt.Fprintln(&b, n.name)
		for _, need := range n.needs {
			fmt.Fprintf(&b, "%x  -\n", sha256.Sum256(need.want()))
		}
		b.Write(n.sourceBytes())
		line := []byte(n.name + "\n")
		b.Write(bytes.Repeat(line, n.padding/len(line)+1)[:n.padding])
		n.content = b.Bytes()
	})
	return n.content
}

// sourcePath is where the client has the node's source.
func (n *node) sourcePath() string { return sourceDir + "/" + n.name }

// sourceDir is a directory on every client.
const sourceDir = "/tmp/sources"

// mainFile is the Nix text for the file that others read.
func (n *node) mainFile(reference string) string {
	if n.tree {
		return fmt.Sprintf(`"${%s}/main"`, reference)
	}
	return reference
}

// expression is the node as a Nix derivation; reference gives the names of others.
func (n *node) expression(reference func(*node) string) string {
	var needs []string
	for _, need := range n.needs {
		needs = append(needs, "("+need.mainFile(reference(need))+")")
	}
	source := `"/dev/null"`
	if n.source > 0 {
		source = fmt.Sprintf(`builtins.path { path = %s; name = "%s-source"; }`, n.sourcePath(), n.name)
	}
	outputs, file, finish, mentions := `[ "out" ]`, "$out", "", ""
	if n.tree {
		outputs, file = `[ "out" "dev" ]`, "$out/main"
		finish = `ln -s $first $out/first; cp $out/main $out/program; chmod 755 $out/program
			{ echo $name; for i in $mentions; do echo $i; done; } > $dev`
		mentions = fmt.Sprintf(`mentions = builtins.genList (i: builtins.toFile "%s-mention-${toString i}" "mentioned\n") %d;`, n.name, n.mentions)
	}
	first := `"/nowhere"`
	if len(n.needs) > 0 {
		first = needs[0]
	}
	script := fmt.Sprintf(`echo "building $name"; sleep %.2f; %s
		{ echo $name; for i in $needs; do sha256sum < $i; done; cat $source; yes $name | head -c %d; } > %s; %s`,
		n.seconds, map[bool]string{true: "mkdir $out;"}[n.tree], n.padding, file, finish)
	return fmt.Sprintf(`derivation { name = %q; system = %q; builder = "/bin/sh"; PATH = "/usr/bin:/bin";
		outputs = %s; needs = [ %s ]; source = %s; first = %s; %s args = [ "-euc" ''%s'' ]; }`,
		n.name, nixlab.System(), outputs, strings.Join(needs, " "), source, first, mentions, script)
}

// expression is the whole graph as Nix text whose value is the root.
func (g graph) expression() string {
	names := map[*node]string{}
	var b strings.Builder
	b.WriteString("let\n")
	for i, n := range g {
		names[n] = fmt.Sprintf("n%d", i)
		fmt.Fprintf(&b, "n%d = %s;\n", i, n.expression(func(n *node) string { return names[n] }))
	}
	fmt.Fprintf(&b, "in n%d", len(g)-1)
	return b.String()
}
