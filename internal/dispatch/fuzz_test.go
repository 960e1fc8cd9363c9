// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"fmt"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

// allocated is what this process has allocated so far, in bytes.
func allocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// mostAllocated is more than any input of a fuzz target needs, and less than one
// length that is believed.
const mostAllocated = 128 << 20

// asked is what a builder may ever be asked by the dispatcher.
var asked = []daemon.Operation{11, 26, 31, 32, 36, 38, 44}

// strangeBuilds answers builds as their names say.
func strangeBuilds(ctx context.Context, b *daemontest.Build) *daemon.BuildResult {
	switch b.DrvPath {
	case storePath("fails.drv"):
		return &daemon.BuildResult{Status: daemon.StatusPermanentFailure, ErrorMessage: "no"}
	case storePath("hangs.drv"):
		<-ctx.Done()
		return &daemon.BuildResult{Status: daemon.StatusMiscFailure}
	case storePath("floods.drv"):
		for range 200 {
			if b.Log(strings.Repeat("x", 10000)) != nil {
				break
			}
		}
	case storePath("large.drv"):
		if _, err := b.Output("out", []byte(strings.Repeat("L", 100<<10))); err != nil {
			return &daemon.BuildResult{Status: daemon.StatusMiscFailure}
		}
		return &daemon.BuildResult{Status: daemon.StatusBuilt}
	}
	return nil
}

// underAttack runs attackers against a dispatcher with two builders on which
// somebody else has built. It checks that they get nothing of that, that builders
// are asked for nothing outside the list, that memory is bounded, and that the
// dispatcher works afterwards; the rig checks that nothing is left over, and the
// bubble of fake time that every goroutine ends.
func underAttack(t *testing.T, prepare func(*rig) []*attacker) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		options := daemontest.Options{Build: strangeBuilds, Substitutes: []string{w.paths[0]}}
		one := newMachine(t, "one", options, slots(2)).has(w.files[0])
		two := newMachine(t, "two", options, features("kvm"))
		// Neither the spool nor what may be kept of an output has room for all.
		r := newRig(t, rigOptions{builders: []*machine{one, two}, spool: 64 << 10, limits: Limits{SpooledOutput: 16 << 10, Stall: time.Minute}})
		owner := r.connect(99, "x86_64-linux.0")
		if result, err := owner.build(victim); err != nil || !result.Status.Success() {
			t.Fatalf("the build of somebody else: %+v, %v", result, err)
		}
		before := allocated()
		attackers := prepare(r)
		var all sync.WaitGroup
		for _, a := range attackers {
			all.Go(a.run)
		}
		all.Wait()
		synctest.Wait()
		if grown := allocated() - before; grown > mostAllocated {
			t.Errorf("%d MiB were allocated", grown>>20)
		}
		for _, a := range attackers {
			if strings.Contains(a.text(), victim.path+"!out") {
				t.Error("an attacker has read the output of somebody else's build")
			}
		}
		for _, m := range []*machine{one, two} {
			for _, op := range m.Operations() {
				if !slices.Contains(asked, op) {
					t.Errorf("%s was asked for %s", m.id, op)
				}
			}
		}
		owner.fetch(victim.Outputs[0].Path)
		owner.mustBuild(newDerivation("afterwards"))
		owner.Close()
	})
}

// FuzzSession plays clients that send any requests in any order, some of them
// malformed, without waiting for answers, over four connections of three hooks; the
// last has not even shaken hands.
func FuzzSession(f *testing.F) {
	for _, seed := range []string{
		// whole builds: ask, upload, build, fetch; one after the other and at once
		"\x00\x0f\x04\x0f\x0c\x02\x14\x02\x18\x02",
		"\x00\x01\x28\x10\x04\x01\x28\x10\x0c\x01\x28\x64\x14\x01\x18\x01\x28\x64\x0c\x06\x28\xff\x18\x06",
		"\x0c\x00\x0d\x00\x0e\x00\x28\xff\x15\x00\x19\x00\x16\x00\x1a\x00",
		// others' output, by every connection
		"\x14\x0e\x18\x0e\x15\x0e\x19\x0e\x16\x0e\x1a\x0e\x00\x00\x0c\x00\x14\x0e",
		// builds that hang, flood and fail; clients that leave or do not read
		"\x0c\x04\x28\xff\x34\x00", "\x30\xff\x0c\x05\x2c\x10\x34\x00", "\x0c\x03\x0c\x00\x0c\x08", "\x0c\x04\x0d\x04\x28\x20\x34\x00\x28\x20\x35\x00",
		// other operations and modes, broken uploads, lengths
		"\x20\x14", "\x20\x0e", "\x10\x40", "\x10\x80", "\x38\x80\x34\x00", "\x38\xff", "\x08\xff", "\x08\x1f\x0c\x00", "\x04\x08\x0c\x01",
		"\x3c\xff", "\x3c\x80", "\x3c\xfe", "\x3c\xf9", "\x24\x10ABCDEFGHABCDEFGH", "\x1c\x00\x1c\x00\x0c\x00",
		// too much for the spool, a large output, a class that is not this line's
		"\x00\xff\x04\x0f\x0c\x09\x28\xff\x18\x09", "\x0c\x07\x28\xff\x18\x07", "\x03\x00\x27\x20GET / HTTP/1.1\r\n\r\n", "\x2f\x40\x0f\x00",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		underAttack(t, func(r *rig) []*attacker {
			w := newWorld()
			var attackers []*attacker
			for i, hook := range []uint32{1, 1, 2, 0} {
				a := &attacker{conn: r.dialClient(hook, fmt.Sprintf("x86_64-linux.%d", i))}
				if i < 3 {
					a.send(greeting(0x123))
				}
				attackers = append(attackers, a)
			}
			for steps := (&tape{data}); len(steps.rest) > 0; {
				b := steps.next()
				w.step(steps, attackers[b&3], b>>2&15)
			}
			return attackers
		})
	})
}

// FuzzStream plays one client that sends any bytes at all.
func FuzzStream(f *testing.F) {
	w := newWorld()
	a := w.files[0]
	hello := string(greeting(0x123))
	for _, seed := range []string{
		hello + string(askValid(false, pathsOf(w.files)...)) + string(uploadOf(1, 64, a)) + string(askBuild(w.derivations[1], 0)) +
			string(askFor(opPathInfo, w.paths[1])) + string(askFor(opNAR, w.paths[1])),
		hello + string(askBuild(w.derivations[6], 0)) + string(askFor(opPathInfo, w.paths[6])),
		hello + string(askBuild(w.derivations[7], 0)),
		hello + string(uploadOf(2, 1000, w.files[:2]...)),
		hello + string(words(opSetOptions, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)) + string(askFor(opNAR, a.info.Path)),
		hello + string(askValid(true, w.paths[0])),
		string(words(0x6e697863, 0x126, 0, 0, 0)), string(greeting(0x122)), string(greeting(0x121)), string(greeting(0x223)),
		hello + string(words(9, 0, 1)), hello + string(words(20, 1, 0, 0, 0, 0, 0, 0)),
		"", "GET / HTTP/1.1\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		underAttack(t, func(r *rig) []*attacker {
			a := &attacker{conn: r.dialClient(1, "x86_64-linux.0")}
			a.send(data)
			return []*attacker{a}
		})
	})
}
