// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/storepath"
	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// canaryTimeout bounds the canary of one system. A build for an emulated one takes
// under a second; more is a machine that is busy, or a build that hangs.
const canaryTimeout = 20 * time.Second

// canaryName is what the paths of canaries are called on builders.
const canaryName = "nix-builder-canary"

// canary is one build.
type canary struct {
	drvPath    string
	derivation *daemon.BasicDerivation
	// program and its archive are the build's input; empty where it is /bin/sh.
	program daemon.PathInfo
	archive []byte
	// word is printed by a build that runs to its end, and by nothing else.
	word string
}

// newCanary makes a build for a system, and where features are given one that requires
// them. Its paths are the same each time, so what it
// could leave behind does not add up.
func newCanary(system string, features []string) canary {
	var random [(canaryWord - 1) / 2]byte
	_, _ = rand.Read(random[:]) // never fails
	c := canary{word: hex.EncodeToString(random[:])}
	// One output for all systems: Nix leaves an empty lock file beside that of a
	// build that failed.
	output := storePath("output:out", sha256.Sum256([]byte(canaryName)), canaryName)
	c.drvPath = storePath("text", sha256.Sum256([]byte(system)), canaryName+".drv")
	c.derivation = &daemon.BasicDerivation{
		Outputs:  []daemon.DerivationOutput{{Name: "out", Path: output}},
		Platform: system,
		Builder:  "/bin/sh", Args: []string{"-c", canaryScript, "sh", output, c.word},
		Env: []daemon.EnvVar{{Name: "name", Value: canaryName}, {Name: "out", Value: output}, {Name: "system", Value: system}},
	}
	if len(features) > 0 {
		c.derivation.Env = append(c.derivation.Env, daemon.EnvVar{Name: "requiredSystemFeatures", Value: strings.Join(features, " ")})
	}
	if code, ok := canaryCode(system); ok {
		c.archive = executableArchive(code.file())
		sum := sha256.Sum256(c.archive)
		path := storePath("source", sum, canaryName)
		// The path is that of its contents, so nobody needs to believe us.
		c.program = daemon.PathInfo{
			Path: path, NARHash: hex.EncodeToString(sum[:]), NARSize: uint64(len(c.archive)),
			CA: "fixed:r:sha256:" + nixBase32(sum[:]),
		}
		c.derivation.InputSources = []string{path}
		c.derivation.Builder, c.derivation.Args = path, []string{output, c.word + "\n"}
	}
	return c
}

// upload offers the program to a store, which keeps the one it has.
func (c *canary) upload(ctx context.Context, client *daemon.Client) error {
	if c.archive == nil {
		return nil
	}
	return client.AddMultipleToStore(ctx, daemon.PathSource{Count: 1, Next: func() (daemon.PathInfo, io.Reader, error) {
		return c.program, bytes.NewReader(c.archive), nil
	}}, nil)
}

// storePath computes a store path as Nix does: a digest of 160 bits of what it is.
func storePath(kind string, sum [sha256.Size]byte, name string) string {
	digest := sha256.Sum256(fmt.Appendf(nil, "%s:sha256:%x:%s:%s", kind, sum, storepath.DefaultDir, name))
	folded := make([]byte, 20)
	for i, b := range digest {
		folded[i%len(folded)] ^= b
	}
	return storepath.DefaultDir + "/" + nixBase32(folded) + "-" + name
}

// nixBase32 prints bytes with Nix's own digits, the last bits first.
func nixBase32(b []byte) string {
	const digits = "0123456789abcdfghijklmnpqrsvwxyz"
	var out strings.Builder
	for n := (len(b)*8+4)/5 - 1; n >= 0; n-- {
		i, shift := n*5/8, n*5%8
		c := uint(b[i]) >> shift
		if i+1 < len(b) {
			c |= uint(b[i+1]) << (8 - shift)
		}
		out.WriteByte(digits[c&0x1f])
	}
	return out.String()
}

// executableArchive is the NAR of an executable file.
func executableArchive(contents []byte) []byte {
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	for _, s := range []string{
		"nix-archive-1", "(", "type", "regular", "executable", "", "contents", string(contents), ")",
	} {
		w.String(s)
	}
	_ = w.Flush() // a buffer takes everything
	return b.Bytes()
}

// errEndless means that a builder goes on to send messages, of which the program of the
// canary makes one.
var errEndless = errors.New("too many messages")

// canaryBuild builds for one system on a session of its own and judges what comes of
// it. The end of ctx or of its time closes the session, which ends the build.
func canaryBuild(ctx context.Context, t *Target, conn *sshconn.Conn, system string, features ...string) canaryVerdict {
	ctx, cancel := context.WithTimeout(ctx, canaryTimeout)
	defer cancel()
	session, err := conn.Start(ctx, t.daemonCommand())
	if err != nil {
		return inconclusive(system, "no session could be opened")
	}
	client, err := daemon.NewClient(ctx, &daemonStdio{Session: session, ctx: ctx}, daemonOptions())
	if err != nil {
		return inconclusive(system, "nix-daemon did not answer")
	}
	defer func() { _ = client.Close() }()
	build := newCanary(system, features)
	ran, messages := false, 0
	listen := func(m daemon.Message) error {
		if messages++; messages > maxDaemonMessages {
			return errEndless
		}
		if line, ok := m.(daemon.ActivityResult); ok && line.Type == daemon.ResultBuildLogLine {
			for _, field := range line.Fields {
				ran = ran || field.IsText && strings.Contains(field.Text, build.word)
			}
		}
		return nil
	}
	err = build.upload(ctx, client)
	var result *daemon.BuildResult
	if err == nil {
		result, err = client.BuildDerivation(ctx, build.drvPath, build.derivation, daemon.BuildNormal, listen)
	}
	var refusal *daemon.RemoteError
	switch {
	case errors.Is(err, errEndless):
		return inconclusive(system, "nix-daemon talks without end")
	case errors.As(err, &refusal):
		return build.judge(system, refusal.Message)
	case err != nil && ctx.Err() != nil:
		return inconclusive(system, fmt.Sprintf("no result within %s", canaryTimeout))
	case err != nil:
		return inconclusive(system, "nix-daemon hung up")
	case result.Status == daemon.StatusPermanentFailure && ran:
		return canaryVerdict{system: system, status: StatusTrue}
	case result.Status.Success():
		return inconclusive(system, "nix-daemon reports an output that the build does not make")
	case result.Status == daemon.StatusTransientFailure && ran:
		// Nix takes a failure for one of the disk where little of it is free.
		return canaryVerdict{system: system, status: StatusFalse, cause: causeDisk, text: "lack of free disk space"}
	default:
		// The word is another one each time, and messages are not to vary.
		return build.judge(system, strings.ReplaceAll(result.ErrorMessage, build.word, ""))
	}
}

func (c *canary) judge(system, message string) canaryVerdict {
	verdict := judge(system, c.derivation.Builder, message)
	if verdict.cause == causeSystem {
		verdict.offers = offeredFeatures(message)
	}
	return verdict
}
