// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package e2e_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"nixbuilder.io/nix-builder-operator/internal/connect"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

const (
	// somePath is a store path that is nowhere.
	somePath = "/nix/store/00000000000000000000000000000000-some"
	// manyBytes is more than the dispatcher may need for any of what follows.
	manyBytes = 256 << 20
)

// malformed is what no Nix says, and a part of what the dispatcher answers; empty
// where the connection is closed without a word, because no request was read.
func malformed() map[string]struct{ says, want string } {
	const huge = 1 << 62
	// basic is a derivation up to its input sources.
	basic := func(output string) string {
		return words(36) + text(somePath+".drv") + words(1) + text("out") + text(output) + text("") + text("")
	}
	return map[string]struct{ says, want string }{
		"path outside the store":        {words(31, 1) + text("/etc/passwd"), `is not in the store /nix/store`},
		"path above the store":          {words(31, 1) + text("/nix/store/../../etc/passwd"), "store path"},
		"path below a path":             {words(26) + text(somePath+"/bin/sh"), "store path"},
		"path of another store":         {words(38) + text("/gnu/store/00000000000000000000000000000000-x"), "is not in the store"},
		"empty path":                    {words(38) + text(""), "store path"},
		"path with a zero byte":         {words(26) + text(somePath+"\x00"), "store path"},
		"very long path":                {words(26) + text(somePath+strings.Repeat("x", 4096)), "4096"},
		"output outside the store":      {basic("/etc/shadow") + words(0), "is not in the store"},
		"input outside the store":       {basic(somePath) + words(1) + text("/root/.ssh/id_rsa"), "is not in the store"},
		"derivation outside the store":  {words(36) + text("/tmp/x.drv"), "is not in the store"},
		"derivation that is none":       {words(36) + text(somePath), "derivation"},
		"count of paths":                {words(31, huge), "paths"},
		"count that overflows":          {words(31, 1<<64-1), "paths"},
		"length of a path":              {words(26, huge), "path"},
		"length that wraps when padded": {words(26, 1<<64-1), "path"},
		"padding that is not zero":      {words(26, 1) + "x\x01\x02\x03\x04\x05\x06\x07", "padding"},
		"boolean that is none":          {words(31, 0, 2), "substitute"},
		"count of outputs":              {words(36) + text(somePath+".drv") + words(huge), "output"},
		"count of variables":            {basic(somePath) + words(0) + text("x") + text("x") + words(0, huge), "environment"},
		"settings without end":          {words(19, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, huge), "SetOptions (19)"},
		"upload that repairs":           {words(44, 1, 1), "with repair is not offered"},
	}
}

var _ = Describe("Garbage from a client", Ordered, func() {
	var (
		builder *nixlab.Builder
		d       *dispatcher
	)
	BeforeAll(func(ctx context.Context) {
		builder = newBuilder(ctx, nixlab.BuilderOptions{Name: "garbage-b"})
		d = newDispatcher(builder.MachinesLine(4))
	}, NodeTimeout(specTimeout))

	// stillBuilds shows that the dispatcher has come through.
	stillBuilds := func(ctx context.Context, name string) {
		GinkgoHelper()
		mustBuild(ctx, newClient(ctx, d, nixlab.ClientOptions{Name: name + "-c"}), nixlab.WithInputs(name, 1))
	}

	It("is answered with what is wrong with it, and the end of the connection", func(ctx context.Context) {
		for what, tc := range malformed() {
			Expect(converse(d.dial(1, plainLine()), greeting()+tc.says)).To(ContainSubstring(tc.want), what)
		}
		stillBuilds(ctx, "after-malformed")
	}, SpecTimeout(specTimeout))

	It("ends the connection where not even a request is read", func(ctx context.Context) {
		for what, says := range map[string]string{
			"HTTP":               "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
			"Nix without helper": greeting(),
			"another version":    "nxbC\x09\x00\x2f\x00" + strings.Repeat("\x00", 47),
			"a giant header":     "nxbC\x01\x00\xff\xff",
			"an empty class":     "nxbC\x01\x00\x23\x00" + strings.Repeat("\x00", 35),
			"SSH":                "SSH-2.0-OpenSSH_9.2\r\n",
		} {
			conn, err := net.Dial("unix", d.volume+"/"+connect.SocketName)
			Expect(err).NotTo(HaveOccurred())
			Expect(converse(conn, says)).To(BeEmpty(), what)
			Expect(conn.Close()).To(Succeed())
		}
		for what, says := range map[string]string{
			"no magic":    words(0x123, 0, 0, 0),
			"nothing new": words(0x6e697863, 0x500, 0, 0),
		} {
			converse(d.dial(1, plainLine()), says)
			Expect(d.running()).To(BeTrue(), what)
		}
		Expect(converse(d.dial(1, plainLine()), words(0x6e697863, 0x115, 0, 0))).To(ContainSubstring("too old"))
		stillBuilds(ctx, "after-headers")
	}, SpecTimeout(specTimeout))

	It("in thousands, sent at once, takes no memory and no build's place", func(ctx context.Context) {
		client := newClient(ctx, d, nixlab.ClientOptions{Name: "swarm-c"})
		d.forgetHighWater()
		before := d.highWater()
		build := startBuild(ctx, client, nixlab.Parallel("swarm", 4, func(name string) string { return nixlab.Sleeping(name, 0.5) }))
		// Connections that say nothing, or stop anywhere.
		var silent []net.Conn
		for i := range 200 {
			conn := d.dial(uint32(i), plainLine())
			_, err := io.WriteString(conn, greeting()[:i%33])
			Expect(err).NotTo(HaveOccurred())
			silent = append(silent, conn)
		}
		var swarm sync.WaitGroup
		for seed := range uint64(8) {
			conns := make([]net.Conn, 100)
			for i := range conns {
				conns[i] = d.dial(uint32(i), plainLine())
			}
			swarm.Go(func() { sendNoise(conns, seed) })
		}
		swarm.Wait()
		build.expectSuccess()
		for _, conn := range silent {
			Expect(conn.Close()).To(Succeed())
		}
		after := d.highWater()
		AddReportEntry("memory", fmt.Sprintf("%d MiB before, at most %d MiB", before>>20, after>>20))
		Expect(after - before).To(BeNumerically("<", manyBytes))
		stillBuilds(ctx, "after-swarm")
	}, SpecTimeout(specTimeout))

	It("that is too large is refused before it is kept", func(ctx context.Context) {
		d.forgetHighWater()
		before := d.highWater()
		const sent = 512 << 20
		conn := d.dial(1, plainLine())
		Expect(conn.SetDeadline(time.Now().Add(patience))).To(Succeed())
		answered := make(chan string)
		go func() {
			answer, _ := io.ReadAll(conn) // it ends when the dispatcher has had enough
			answered <- string(answer)
		}()
		_, err := io.WriteString(conn, greeting()+words(36)+text(somePath+".drv")+words(0, 0)+text("x")+text("x")+words(1<<18))
		argument := text(strings.Repeat("x", 1<<20))
		for n := 0; err == nil && n < sent; n += len(argument) {
			_, err = io.WriteString(conn, argument)
		}
		Expect(err).To(HaveOccurred(), "%d bytes of one derivation were taken", sent)
		Expect(<-answered).To(ContainSubstring("BuildDerivation (36)"))
		after := d.highWater()
		AddReportEntry("memory", fmt.Sprintf("%d MiB before, at most %d MiB", before>>20, after>>20))
		Expect(after - before).To(BeNumerically("<", manyBytes))
		stillBuilds(ctx, "after-large")
	}, SpecTimeout(specTimeout))
})

// sendNoise sends pieces of requests and random bytes over each connection.
func sendNoise(conns []net.Conn, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 1))
	var pieces []string
	for _, tc := range malformed() {
		pieces = append(pieces, tc.says)
	}
	pieces = append(pieces, words(31, 0, 0), words(44, 0, 1, 8, 1), words(44, 0, 1, 8, 0, 0), words(19, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), words(26)+text(somePath))
	for _, conn := range conns {
		_, _ = io.WriteString(conn, greeting()) // it may be closed at any byte
		for range 1 + random.IntN(4) {
			piece := []byte(pieces[random.IntN(len(pieces))])
			if random.IntN(3) == 0 {
				piece[random.IntN(len(piece))] ^= byte(1 << random.IntN(8))
			}
			_, _ = conn.Write(piece[:random.IntN(len(piece)+1)])
		}
		_ = conn.Close()
	}
}
