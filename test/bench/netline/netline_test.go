// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package netline

import (
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// newPair returns two joined namespaces.
func newPair(t *testing.T, quality Quality) (near, far *Namespace, line *Line) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	namespaces := make([]*Namespace, 2)
	for i := range namespaces {
		n, err := NewNamespace()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(n.Close)
		namespaces[i] = n
	}
	near, far = namespaces[0], namespaces[1]
	line, err := Connect(End{near, "line0", "10.9.0.1"}, End{far, "line0", "10.9.0.2"}, quality)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(line.Close)
	return near, far, line
}

// serve accepts connections in the namespace and discards what they bring, and
// tells how much it was.
func serve(t *testing.T, n *Namespace) <-chan int64 {
	t.Helper()
	var listener net.Listener
	if err := n.Do(func() (err error) { listener, err = net.Listen("tcp", "10.9.0.2:7"); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	got := make(chan int64, 16)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			n, _ := io.Copy(io.Discard, conn)
			conn.Close()
			got <- n
		}
	}()
	return got
}

func TestLine(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		quality Quality
		size    int
	}{
		"plain":          {quality: Quality{}, size: 8 << 20},
		"slow":           {quality: Quality{RoundTrip: 60 * time.Millisecond}, size: 1 << 20},
		"slow and lossy": {quality: Quality{RoundTrip: 10 * time.Millisecond, Loss: 0.01, Seed: 1}, size: 1 << 20},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			near, far, line := newPair(t, tc.quality)
			got := serve(t, far)

			took, err := line.Measure(7)
			if err != nil {
				t.Fatal(err)
			}
			// A handshake may be lost and repeated after a second; the machine
			// may be busy.
			if took < tc.quality.RoundTrip || took > tc.quality.RoundTrip+3*time.Second {
				t.Errorf("a connection took %v on a line of %v", took, tc.quality.RoundTrip)
			}
			<-got

			var conn net.Conn
			if err := near.Do(func() (err error) { conn, err = net.Dial("tcp", "10.9.0.2:7"); return err }); err != nil {
				t.Fatal(err)
			}
			_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
			if _, err := conn.Write(make([]byte, tc.size)); err != nil {
				t.Fatal(err)
			}
			conn.Close()
			if n := <-got; n != int64(tc.size) {
				t.Errorf("%d bytes arrived, sent were %d", n, tc.size)
			}
		})
	}
}

func TestLineVanishes(t *testing.T) {
	t.Parallel()
	near, _, line := newPair(t, Quality{RoundTrip: time.Millisecond})
	line.Close()
	err := near.Do(func() error { _, err := net.InterfaceByName("line0"); return err })
	if err == nil {
		t.Error("the device is still there")
	}
}

func TestNamespacesAreApart(t *testing.T) {
	t.Parallel()
	near, _, _ := newPair(t, Quality{})
	if _, err := net.InterfaceByName("line0"); err == nil {
		t.Error("the machine's own namespace has the line's device")
	}
	if err := near.Do(func() error { _, err := net.InterfaceByName("lo"); return err }); err != nil {
		t.Error(err)
	}
}
