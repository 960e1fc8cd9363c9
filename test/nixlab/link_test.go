// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixlab

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// startLink makes a link to a server that sends back what it gets.
func startLink(t *testing.T) *Link {
	t.Helper()
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	go func() {
		for {
			connection, err := server.Accept()
			if err != nil {
				return
			}
			go func() {
				defer connection.Close()
				_, _ = io.Copy(connection, connection)
			}()
		}
	}()
	link, err := listenLink("127.0.0.1:0", server.Addr().String(), dialTCP)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(link.Close)
	return link
}

func dialLink(t *testing.T, link *Link) net.Conn {
	t.Helper()
	connection, err := net.Dial("tcp", link.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	return connection
}

// exchange sends n bytes and reads them back.
func exchange(t *testing.T, connection net.Conn, n int, patience time.Duration) error {
	t.Helper()
	if err := connection.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	sent := bytes.Repeat([]byte("x"), n)
	if _, err := connection.Write(sent); err != nil {
		return err
	}
	got := make([]byte, n)
	if _, err := io.ReadFull(connection, got); err != nil {
		return err
	}
	if !bytes.Equal(sent, got) {
		t.Fatal("other bytes came back")
	}
	return nil
}

func TestLinkCarriesBothWaysAndTheEnd(t *testing.T) {
	t.Parallel()
	connection := dialLink(t, startLink(t))
	if err := exchange(t, connection, 100<<10, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if err := connection.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := connection.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v, want the end of the file", err)
	}
}

func TestLinkIsAsSlowAsSet(t *testing.T) {
	t.Parallel()
	link := startLink(t)
	link.SetUploadRate(200 << 10)
	began := time.Now()
	if err := exchange(t, dialLink(t, link), 100<<10, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 400*time.Millisecond {
		t.Errorf("100 KiB at 200 KiB/s took %v", took)
	}
}

func TestLinkSilence(t *testing.T) {
	t.Parallel()
	link := startLink(t)
	connection := dialLink(t, link)
	if err := exchange(t, connection, 10, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	link.Silence()
	if err := exchange(t, connection, 10, 100*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("through a silent link: %v, want no answer", err)
	}
	link.Speak()
	if err := connection.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(connection, make([]byte, 10)); err != nil {
		t.Errorf("what was held back did not arrive: %v", err)
	}
}

func TestLinkCut(t *testing.T) {
	t.Parallel()
	link := startLink(t)
	connection := dialLink(t, link)
	if err := exchange(t, connection, 10, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	link.Cut()
	if err := exchange(t, connection, 10, 10*time.Second); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("through a cut connection: %v, want an error at once", err)
	}
	if err := exchange(t, dialLink(t, link), 10, 10*time.Second); err != nil {
		t.Errorf("a new connection: %v", err)
	}
}
