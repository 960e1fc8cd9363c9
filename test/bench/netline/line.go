// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package netline

import (
	"fmt"
	"net"
	"sync"
	"time"
)

// End is one end of a line.
type End struct {
	Namespace *Namespace
	// Device is the name of the network device that is made there.
	Device string
	// Address is the device's, an IPv4 address.
	Address string
}

// Quality is what a line does to packets.
type Quality struct {
	// RoundTrip is split evenly between the two directions.
	RoundTrip time.Duration
	// Loss is the part of packets, from 0 to 1, that do not arrive; in each
	// direction.
	Loss float64
	// Seed chooses which packets those are.
	Seed uint64
}

// Line joins two namespaces.
type Line struct {
	near, far End
	relays    []*relay
	group     sync.WaitGroup
}

// Connect makes a line between two ends. Without delay and loss it is a veth
// pair, which is as fast as loopback, otherwise a pair of TUN devices with the
// common MTU of 1500 bytes.
func Connect(near, far End, quality Quality) (*Line, error) {
	l := &Line{near: near, far: far}
	var err error
	if quality.RoundTrip == 0 && quality.Loss == 0 {
		err = l.connectPlain()
	} else {
		err = l.connectSlow(quality)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("line from %s to %s: %w", near.Address, far.Address, err)
	}
	return l, nil
}

// Close takes a slow line away: its devices vanish. A plain one lasts as long as
// its namespaces.
func (l *Line) Close() {
	for _, r := range l.relays {
		r.close()
	}
	l.group.Wait()
}

// Measure returns the round-trip time that a TCP connection sees which is opened
// to a port of the far end, refused or not.
func (l *Line) Measure(port int) (time.Duration, error) {
	var took time.Duration
	err := l.near.Namespace.Do(func() error {
		began := time.Now()
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(l.far.Address, fmt.Sprint(port)), 10*time.Second)
		took = time.Since(began)
		if err == nil {
			conn.Close()
		}
		return err
	})
	return took, err
}

func (l *Line) connectPlain() error {
	err := l.near.Namespace.Do(func() error {
		return ip("link", "add", l.near.Device, "type", "veth", "peer", "name", l.far.Device, "netns", l.far.Namespace.Path())
	})
	if err != nil {
		return err
	}
	return l.address()
}

// address gives both devices their addresses and takes them up.
func (l *Line) address() error {
	for _, side := range []struct{ end, peer End }{{l.near, l.far}, {l.far, l.near}} {
		err := side.end.Namespace.Do(func() error {
			if err := ip("address", "add", side.end.Address, "peer", side.peer.Address, "dev", side.end.Device); err != nil {
				return err
			}
			// Devices drop what a busy reader does not fetch in time, and the
			// only losses here are to be those asked for.
			return ip("link", "set", side.end.Device, "txqueuelen", "50000", "up")
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *Line) connectSlow(quality Quality) error {
	near, err := openTUN(l.near)
	if err != nil {
		return err
	}
	far, err := openTUN(l.far)
	if err != nil {
		near.Close()
		return err
	}
	up := newRelay(near, far, quality, 1)
	down := newRelay(far, near, quality, 2)
	l.relays = []*relay{up, down}
	for _, r := range l.relays {
		l.group.Go(r.read)
		l.group.Go(r.write)
	}
	return l.address()
}
