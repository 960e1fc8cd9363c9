// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"nixbuilder.io/nix-builder-operator/internal/nix/storepath"
)

func TestCanaryCode(t *testing.T) {
	t.Parallel()
	tests := map[string]elf.Machine{
		"x86_64-linux": elf.EM_X86_64, "x86_64-v3-linux": elf.EM_X86_64, "i686-linux": elf.EM_386, "aarch64-linux": elf.EM_AARCH64,
		"armv6l-linux": elf.EM_ARM, "armv7l-linux": elf.EM_ARM, "riscv64-linux": elf.EM_RISCV,
		"x86_64-darwin": elf.EM_NONE, "aarch64-darwin": elf.EM_NONE, "s390x-linux": elf.EM_NONE, "": elf.EM_NONE,
	}
	for system, want := range tests {
		code, ok := canaryCode(system)
		if ok != (want != elf.EM_NONE) || code.machine != want {
			t.Errorf("%s: %v, %t", system, code.machine, ok)
		}
		if !ok {
			continue
		}
		text, err := hex.DecodeString(code.code)
		if err != nil || len(text) == 0 {
			t.Errorf("%s: %v", system, err)
		}
		file, err := elf.NewFile(bytes.NewReader(code.file()))
		if err != nil {
			t.Errorf("%s: %v", system, err)
			continue
		}
		segment := file.Progs[0]
		if len(file.Progs) != 1 || file.Machine != want || segment.Filesz != uint64(len(code.file())) ||
			file.Entry != segment.Vaddr+segment.Filesz-uint64(len(text)) {
			t.Errorf("%s: %+v, %+v", system, file.FileHeader, segment.ProgHeader)
		}
	}
}

// Programs of this machine's processor are run as they are, others where the user
// mode emulation of QEMU is installed.
func TestCanaryProgramRuns(t *testing.T) {
	t.Parallel()
	const word = "0123456789abcdef0123456789abcdef\n"
	for system, emulator := range map[string]string{
		"x86_64-linux": "qemu-x86_64-static", "i686-linux": "qemu-i386-static", "aarch64-linux": "qemu-aarch64-static",
		"armv7l-linux": "qemu-arm-static", "riscv64-linux": "qemu-riscv64-static",
	} {
		t.Run(system, func(t *testing.T) {
			t.Parallel()
			code, _ := canaryCode(system)
			program := filepath.Join(t.TempDir(), "program")
			if err := os.WriteFile(program, code.file(), 0o700); err != nil {
				t.Fatal(err)
			}
			command := []string{program}
			if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" || code.machine != elf.EM_X86_64 && code.machine != elf.EM_386 {
				path, err := exec.LookPath(emulator)
				if err != nil {
					t.Skip(err)
				}
				command = []string{path, program}
			}
			dir := t.TempDir()
			tests := map[string]struct {
				path       string
				wantStatus int
				wantOutput string
			}{
				"works":        {filepath.Join(dir, "out"), canaryExit, word},
				"cannot make":  {filepath.Join(dir, "none", "out"), canaryNoOutput, ""},
				"cannot write": {"/dev/full", canaryNoWriting, ""},
			}
			for name, tc := range tests {
				output, err := exec.CommandContext(t.Context(), command[0], append(command[1:], tc.path, word)...).Output()
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.ExitCode() != tc.wantStatus || string(output) != tc.wantOutput {
					t.Errorf("%s: %v, %q", name, err, output)
				}
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("it leaves %v, %v", left, err)
			}
		})
	}
}

// The script does the same, as far as it can be tried here.
func TestCanaryScript(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	command := exec.CommandContext(t.Context(), "/bin/sh", "-c", canaryScript, "sh", filepath.Join(dir, "out"), "WORD")
	output, err := command.Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != canaryExit || string(output) != "WORD\n" {
		t.Errorf("%v, %q", err, output)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("it leaves %v, %v", left, err)
	}
}

func TestNixBase32(t *testing.T) {
	t.Parallel()
	empty := sha256.Sum256(nil)
	for want, b := range map[string][]byte{
		"0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73": empty[:],
		"00000000000000000000000000000000":                     make([]byte, 20),
		"":                                                     nil,
	} {
		if got := nixBase32(b); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// Paths are well-formed, and the same however often a canary is made; words are not.
func TestNewCanary(t *testing.T) {
	t.Parallel()
	outputs := map[string]bool{}
	for _, system := range []string{"x86_64-linux", "aarch64-linux", "x86_64-darwin"} {
		one, other := newCanary(system, nil), newCanary(system, nil)
		if one.drvPath != other.drvPath || one.program.Path != other.program.Path || one.word == other.word {
			t.Errorf("%s: %s and %s", system, one.drvPath, other.drvPath)
		}
		if len(one.word)+1 != canaryWord || one.derivation.Platform != system || len(one.archive) > 1024 {
			t.Errorf("%s: word %q, %+v", system, one.word, one.derivation)
		}
		paths := append([]string{one.drvPath, one.derivation.Outputs[0].Path}, one.derivation.InputSources...)
		for _, path := range paths {
			if _, err := storepath.Parse(storepath.DefaultDir, path); err != nil {
				t.Errorf("%s: %v", system, err)
			}
		}
		if (one.archive == nil) != strings.HasSuffix(system, "darwin") {
			t.Errorf("%s is built by %s", system, one.derivation.Builder)
		}
		outputs[one.derivation.Outputs[0].Path] = true
	}
	if len(outputs) != 1 {
		t.Errorf("outputs %v", outputs)
	}
}
