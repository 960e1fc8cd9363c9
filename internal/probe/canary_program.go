// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"strings"
)

// The builder of the canary's derivation. A sandbox has at most a /bin/sh of the
// machine's own kind, which shows nothing about emulation; so for Linux it is a
// program that brings all it needs, some 250 bytes of the system's own machine code,
// uploaded as the build's only input. Elsewhere, and for processors not known here,
// it is /bin/sh, which every such builder has.
//
// It gets two arguments, a path and a word, and
//
//	fd = openat(AT_FDCWD, path, O_WRONLY|O_CREAT|O_TRUNC, 0644)  or ends with 2
//	write(fd, word, 33) == 33                                    or ends with 3
//	unlinkat(AT_FDCWD, path, 0)
//	write(1, word, 33)
//	exit_group(77)
//
// so that the word in the log proves that it ran, now, with a store that can be
// written to; and since the build "fails" all the same, nothing is registered.
const (
	canaryExit      = 77
	canaryNoOutput  = 2
	canaryNoWriting = 3
	// canaryWord is the length of the word with the newline that ends it.
	canaryWord = 33
)

// canaryScript is the same for /bin/sh. Only macOS and the like get it, where the
// file can be removed by a program of the system.
const canaryScript = `echo "$2" >"$1" || exit 3; /bin/rm -f "$1"; echo "$2"; exit 77`

// machineCode is the program for one processor.
type machineCode struct {
	machine elf.Machine
	flags   uint32
	wide    bool // 64 bits
	code    string
}

// canaryCode finds the program for a system of Nix, such as "x86_64-v3-linux".
func canaryCode(system string) (machineCode, bool) {
	cpu, os, _ := strings.Cut(system, "-")
	if !strings.HasSuffix(os, "linux") {
		return machineCode{}, false
	}
	switch cpu {
	case "x86_64":
		return machineCode{machine: elf.EM_X86_64, wide: true, code: "" +
			"488b742410bf9cffffffba4102000041baa4010000b8010100000f05" + // openat
			"85c0bb02000000784b" +
			"89c7488b742418ba21000000b8010000000f05" + // write
			"83f821bb03000000752e" +
			"bf9cffffff488b74241031d2b8070100000f05" + // unlinkat
			"bf01000000488b742418ba21000000b8010000000f05" + // write
			"bb4d00000089dfb8e70000000f05"}, true
	case "i386", "i486", "i586", "i686":
		return machineCode{machine: elf.EM_386, code: "" +
			"b827010000bb9cffffff8b4c2408ba41020000bea4010000cd80" + // openat
			"bf0200000085c07848" +
			"89c3b8040000008b4c240cba21000000cd80" + // write
			"bf0300000083f821752c" +
			"b82d010000bb9cffffff8b4c240831d2cd80" + // unlinkat
			"b804000000bb010000008b4c240cba21000000cd80" + // write
			"bf4d00000089fbb8fc000000cd80"}, true
	case "aarch64":
		return machineCode{machine: elf.EM_AARCH64, wide: true, code: "" +
			"600c8092e10b40f9224880d2833480d2080780d2010000d4" + // openat
			"490080d26002f837" +
			"e10f40f9220480d2080880d2010000d4" + // write
			"690080d21f8400f181010054" +
			"600c8092e10b40f9020080d2680480d2010000d4" + // unlinkat
			"200080d2e10f40f9220480d2080880d2010000d4" + // write
			"a90980d2e00309aac80b80d2010000d4"}, true
	case "armv5tel", "armv6l", "armv7l":
		return machineCode{machine: elf.EM_ARM, flags: 0x05000000, code: "" +
			"6300e0e308109de568209fe5693fa0e364709fe5000000ef" + // openat
			"0290a0e3000050e3110000ba" +
			"0c109de52120a0e30470a0e3000000ef" + // write
			"0390a0e3210050e30a00001a" +
			"6300e0e308109de50020a0e3527fa0e3000000ef" + // unlinkat
			"0100a0e30c109de52120a0e30470a0e3000000ef" + // write
			"4d90a0e30900a0e1f870a0e3000000ef" +
			"4102000042010000"}, true // the two numbers that openat needs
	case "riscv64":
		return machineCode{machine: elf.EM_RISCV, wide: true, code: "" +
			"1305c0f983350101130610249306401a9308800373000000" + // openat
			"9304200063460504" +
			"83358101130610029308000473000000" + // write
			"930430009302100263185502" +
			"1305c0f983350101130600009308300273000000" + // unlinkat
			"1305100083358101130610029308000473000000" + // write
			"9304d004138504009308e00573000000"}, true
	}
	return machineCode{}, false
}

// canaryAddress is where the program is loaded: a multiple of every page size.
const canaryAddress = 0x400000

// file makes an executable file of the program: header, one segment, code.
func (m machineCode) file() []byte {
	code, _ := hex.DecodeString(m.code) // constants; a test decodes each
	ident := [elf.EI_NIDENT]byte{0: 0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS32), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)}
	var header, segment any
	if m.wide {
		ident[elf.EI_CLASS] = byte(elf.ELFCLASS64)
		const before = 64 + 56
		size := uint64(before + len(code))
		header = elf.Header64{
			Ident: ident, Type: uint16(elf.ET_EXEC), Machine: uint16(m.machine), Version: uint32(elf.EV_CURRENT),
			Entry: canaryAddress + before, Phoff: 64, Flags: m.flags, Ehsize: 64, Phentsize: 56, Phnum: 1,
		}
		segment = elf.Prog64{
			Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: canaryAddress, Paddr: canaryAddress,
			Filesz: size, Memsz: size, Align: 0x10000,
		}
	} else {
		const before = 52 + 32
		size := uint32(before + len(code))
		header = elf.Header32{
			Ident: ident, Type: uint16(elf.ET_EXEC), Machine: uint16(m.machine), Version: uint32(elf.EV_CURRENT),
			Entry: canaryAddress + before, Phoff: 52, Flags: m.flags, Ehsize: 52, Phentsize: 32, Phnum: 1,
		}
		segment = elf.Prog32{
			Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: canaryAddress, Paddr: canaryAddress,
			Filesz: size, Memsz: size, Align: 0x10000,
		}
	}
	var out bytes.Buffer
	for _, part := range []any{header, segment, code} {
		_ = binary.Write(&out, binary.LittleEndian, part) // of fixed size, into memory
	}
	return out.Bytes()
}
