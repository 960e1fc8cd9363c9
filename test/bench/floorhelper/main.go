// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Command floorhelper stands where the dispatcher's helper stands, and joins Nix
// to a socket that leads to a builder's nix-daemon without anything between: what
// it costs is the least that any way to a remote builder costs. Like the
// dispatcher's helper it is static and links neither fmt nor net.
//
// It is called as `floorhelper --stdio --store NAME.LINE` and connects to
// NAME.sock in its own directory.
package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		_, _ = os.Stderr.WriteString("floorhelper: " + err.Error() + "\n")
		os.Exit(1)
	}
}

func run(args []string) error {
	name := ""
	for i, arg := range args {
		if arg == "--store" && i+1 < len(args) {
			name, _, _ = strings.Cut(args[i+1], ".")
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: filepath.Join(filepath.Dir(self), name+".sock")}); err != nil {
		return err
	}
	if err := syscall.SetNonblock(fd, true); err != nil {
		return err
	}
	conn := os.NewFile(uintptr(fd), name)
	go func() {
		carry(conn, os.Stdin)
		_ = syscall.Shutdown(fd, syscall.SHUT_WR)
	}()
	carry(os.Stdout, conn)
	return nil
}

// carry copies until either side ends.
func carry(dst io.Writer, src io.Reader) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := src.Read(buffer)
		if n > 0 {
			if _, err := dst.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
