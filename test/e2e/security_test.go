// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// A client can build. It can neither change a builder nor find out what is there.
var _ = Describe("A hostile client", Ordered, func() {
	const secret = "what somebody else has built"
	var (
		builder    *nixlab.Builder
		dispatcher *dispatcher
		secretPath string
		storePaths []string
	)
	BeforeAll(func(ctx context.Context) {
		builder = newBuilder(ctx, nixlab.BuilderOptions{Name: "hostile-b"})
		dispatcher = newDispatcher(builder.MachinesLine(4))
		Expect(builder.WriteFile("/tmp/secret", secret, 0o644)).To(Succeed())
		path, err := builder.Exec(ctx, "nix-store", "--add", "/tmp/secret")
		Expect(err).NotTo(HaveOccurred())
		secretPath = strings.TrimSpace(path)
		storePaths, err = builder.StorePaths()
		Expect(err).NotTo(HaveOccurred())
	}, NodeTimeout(specTimeout))

	// Whatever was tried, nothing has changed on the builder and the dispatcher
	// is as it was.
	AfterEach(func(ctx context.Context) {
		Expect(dispatcher.running()).To(BeTrue())
		now, err := builder.StorePaths()
		Expect(err).NotTo(HaveOccurred())
		Expect(now).To(ContainElements(storePaths), "paths are gone from the builder")
		_, err = builder.Exec(ctx, "sh", "-c", "! ls /tmp/owned* 2>/dev/null")
		Expect(err).NotTo(HaveOccurred(), "the client has run something of its own on the builder")
	}, NodeTimeout(specTimeout))

	for _, version := range nixlab.Versions() {
		for _, who := range personas() {
			It(fmt.Sprintf("can do nothing but build: Nix %s as %s", version, who.name), func(ctx context.Context) {
				client := newPersonaClient(ctx, dispatcher, who, nixlab.ClientOptions{Name: fmt.Sprintf("hostile-c%s-%d", slug(version), slices.IndexFunc(personas(), func(p persona) bool { return p.name == who.name })), Version: version})
				name := "honest-" + client.Name()
				result := who.run(ctx, client, nil, "nix-build", "--no-out-link", "--expr", nixlab.WithInputs(name, 2))
				Expect(result.Status).To(BeZero(), result.Stderr)
				Expect(strings.TrimSpace(result.Stdout)).To(MatchRegexp(built(name)))

				remote := []string{"NIX_REMOTE=" + storeURL(plainLine())}
				for what, args := range map[string][]string{
					"collect garbage":      {"nix-store", "--gc"},
					"delete a path":        {"nix-store", "--delete", secretPath},
					"read a path":          {"nix-store", "--export", secretPath},
					"copy a path":          {"nix", "copy", "--no-check-sigs", "--from", storeURL(plainLine()), "--to", "/tmp/copy", secretPath},
					"list what there is":   {"nix", "path-info", "--all"},
					"see references":       {"nix-store", "--query", "--references", secretPath},
					"see roots":            {"nix-store", "--gc", "--print-roots"},
					"add a path":           {"nix-store", "--add", "/etc/passwd"},
					"verify and repair":    {"nix-store", "--verify", "--repair", "--check-contents"},
					"repair a path":        {"nix-store", "--repair-path", secretPath},
					"optimise":             {"nix-store", "--optimise"},
					"build with a program": {"nix-build", "--no-out-link", "--expr", nixlab.Trivial("by-path-" + name), "--option", "post-build-hook", "/tmp/hook"},
				} {
					result := who.run(ctx, client, remote, args...)
					Expect(result.Status).NotTo(BeZero(), "a client can %s:\n%s", what, result.Stdout)
					Expect(result.Stdout+result.Stderr).NotTo(ContainSubstring(secret), what)
					Expect(result.Stderr).To(Or(ContainSubstring("is not offered by this dispatcher"), MatchRegexp("path .* is not valid|not supported")), what)
				}
				gc := who.run(ctx, client, remote, "nix-store", "--gc")
				Expect(gc.Stderr).To(ContainSubstring("CollectGarbage (20) is not offered"))
			}, SpecTimeout(specTimeout))
		}
	}

	for _, who := range personas() {
		It("cannot write to the volume as "+who.name, func(ctx context.Context) {
			client := newPersonaClient(ctx, dispatcher, who, nixlab.ClientOptions{Name: fmt.Sprintf("volume-c%d", len(who.name))})
			for _, script := range []string{
				"echo x > $1/x", "echo x > $1/nix.conf", "echo x > $1/machines", "echo x > $1/nix-dispatch-connect",
				"rm $1/dispatch.sock", "mv $1/machines $1/m", "chmod 777 $1/nix.conf", "ln -s /etc/passwd $1/link",
			} {
				result := who.run(ctx, client, nil, "sh", "-c", script, "sh", nixlab.VolumePath)
				Expect(result.Status).NotTo(BeZero(), script)
				Expect(result.Stderr).To(ContainSubstring("Read-only file system"), script)
			}
			// Were it writable, only its owner could.
			modes := who.run(ctx, client, nil, "sh", "-c", "cd $1 && stat -c '%a %n' . nix.conf machines nix-dispatch-connect dispatch.sock", "sh", nixlab.VolumePath)
			Expect(strings.Split(strings.TrimSpace(modes.Stdout), "\n")).To(ConsistOf(
				"755 .", "644 nix.conf", "644 machines", "755 nix-dispatch-connect", "666 dispatch.sock"))
			who.run(ctx, client, nil, "nix-build", "--no-out-link", "--expr", nixlab.Trivial("after-volume-"+client.Name()))
		}, SpecTimeout(specTimeout))

		It("cannot change the builder's settings as "+who.name, func(ctx context.Context) {
			client := newPersonaClient(ctx, dispatcher, who, nixlab.ClientOptions{Name: fmt.Sprintf("settings-c%d", len(who.name))})
			Expect(builder.WriteFile("/tmp/hook", "#!/bin/sh\necho hook > /tmp/owned-by-hook\n", 0o755)).To(Succeed())
			session := who.connect(ctx, client, plainLine())
			session.setOptions("post-build-hook", "/tmp/hook", "pre-build-hook", "/tmp/hook", "build-users-group", "",
				"secret-key-files", "/etc/ssh/lab_hostkey", "builders", "ssh-ng://elsewhere", "trusted-users", "*", "max-build-log-size", "1")
			path, drv := forged("settings"+fmt.Sprint(len(who.name)), "id -un > $out")
			result, err := session.BuildDerivation(ctx, path, drv, daemon.BuildNormal, nil)
			Expect(err).NotTo(HaveOccurred())
			Expect(result.Status.Success()).To(BeTrue(), result.ErrorMessage)
			var nar bytes.Buffer
			_, err = session.NARFromPath(ctx, drv.Outputs[0].Path, &nar, nil)
			Expect(err).NotTo(HaveOccurred())
			Expect(nar.String()).To(ContainSubstring("nixbld"), "it was built by another user than those for builds")
		}, SpecTimeout(specTimeout))
	}

	It("is told which operation is not offered, whatever it asks for", func(ctx context.Context) {
		served := daemon.HookOperations()
		var numbers []uint64
		for n := range uint64(64) {
			numbers = append(numbers, n)
		}
		for _, n := range append(numbers, 1000, 1001, 1<<32, 1<<63, 1<<64-1) {
			if slices.Contains(served, daemon.Operation(n)) {
				continue
			}
			answer := converse(dispatcher.dial(1, plainLine()), greeting()+words(n, 0, 0, 0, 0, 0, 0, 0, 0))
			Expect(answer).To(ContainSubstring(daemon.Operation(n).String() + " is not offered by this dispatcher"))
		}
	}, SpecTimeout(specTimeout))

	It("reads nothing but outputs of its own builds", func(ctx context.Context) {
		owner, other := dispatcher.speak(ctx, 11), dispatcher.speak(ctx, 12)
		path, drv := forged("somebodys", "echo "+secret+" > $out")
		result, err := owner.BuildDerivation(ctx, path, drv, daemon.BuildNormal, nil)
		Expect(err).NotTo(HaveOccurred())
		Expect(result.Status.Success()).To(BeTrue(), result.ErrorMessage)
		for _, target := range []string{secretPath, drv.Outputs[0].Path, path} {
			info, valid, err := other.QueryPathInfo(ctx, target, nil)
			Expect(err).NotTo(HaveOccurred())
			Expect(valid).To(BeFalse(), "the client learns of %s: %+v", target, info)
			var nar bytes.Buffer
			_, err = other.NARFromPath(ctx, target, &nar, nil)
			Expect(err).To(HaveOccurred())
			Expect(nar.Len()).To(BeZero())
			other = dispatcher.speak(ctx, 12)
		}
		_, valid, err := owner.QueryPathInfo(ctx, drv.Outputs[0].Path, nil)
		Expect(err).NotTo(HaveOccurred())
		Expect(valid).To(BeTrue())
		// Not even its owner reads what it has not built.
		_, valid, err = owner.QueryPathInfo(ctx, secretPath, nil)
		Expect(err).NotTo(HaveOccurred())
		Expect(valid).To(BeFalse())
	}, SpecTimeout(specTimeout))

	It("cannot have anything repaired or checked", func(ctx context.Context) {
		path, drv := forged("repaired", "echo x > $out")
		for mode, word := range map[daemon.BuildMode]string{daemon.BuildRepair: "repair", daemon.BuildCheck: "check", 3: "3", 1 << 40: "1099511627776"} {
			_, err := dispatcher.speak(ctx, 1).BuildDerivation(ctx, path, drv, mode, nil)
			Expect(err).To(MatchError(And(ContainSubstring("BuildDerivation (36) in mode "), ContainSubstring(word), ContainSubstring("not offered"))))
		}
	}, SpecTimeout(specTimeout))

	It("is told what is wrong with a line that does not exist", func(ctx context.Context) {
		client := newClient(ctx, dispatcher, nixlab.ClientOptions{Name: "lines-c"})
		for line, want := range map[string]string{
			"riscv64-linux.0":                   "knows no builders of class",
			nixlab.System() + ".9999":           "has no slot 9999",
			nixlab.System() + "-kvm-nested.0":   "knows no builders of class",
			strings.Repeat("x", 128) + ".65535": "knows no builders of class",
		} {
			result, err := client.NixBuildExpr(ctx, nixlab.Trivial("no-line"), "--builders", storeURL(line)+" "+nixlab.System())
			Expect(err).NotTo(HaveOccurred())
			Expect(result.Status).NotTo(BeZero())
			Expect(result.Stderr).To(ContainSubstring(want))
		}
		for _, line := range []string{"x", "x.65536", "x.-1", "../x.0", "a b.0", strings.Repeat("x", 129) + ".0", ".0"} {
			result, err := client.Run(ctx, nixlab.VolumePath+"/nix-dispatch-connect", "--stdio", "--store", line)
			Expect(err).NotTo(HaveOccurred())
			Expect(result.Status).NotTo(BeZero(), line)
			Expect(result.Stderr).To(ContainSubstring("nix-dispatch-connect: --store "), line)
		}
	}, SpecTimeout(specTimeout))
})
