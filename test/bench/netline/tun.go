// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package netline

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// mtu is that of Ethernet, so that loss hits as many bytes as elsewhere.
	mtu = 1500
	// queued bounds the packets on their way in one direction, to bound memory:
	// 200 MiB, more than any sender of the benchmark has in flight.
	queued = 1 << 17
)

// openTUN makes a TUN device in the namespace of an end: whoever has the file
// open reads the packets that are sent there, and writes those that arrive.
func openTUN(end End) (*os.File, error) {
	var file *os.File
	err := end.Namespace.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		request, err := unix.NewIfreq(end.Device)
		if err == nil {
			request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		}
		// Only now: a device without a name cannot be polled.
		if err == nil {
			err = unix.SetNonblock(fd, true)
		}
		if err != nil {
			_ = unix.Close(fd)
			return fmt.Errorf("make the device %s: %w", end.Device, err)
		}
		file = os.NewFile(uintptr(fd), end.Device)
		return nil
	})
	return file, err
}

// packet is on its way.
type packet struct {
	due    time.Time
	buffer *[mtu]byte
	size   int
}

// relay carries the packets of one direction.
type relay struct {
	from, to *os.File
	delay    time.Duration
	loss     float64
	random   *rand.Rand
	packets  chan packet
	done     chan struct{}
	closing  sync.Once
	buffers  sync.Pool
}

func newRelay(from, to *os.File, quality Quality, direction uint64) *relay {
	return &relay{
		from:    from,
		to:      to,
		delay:   quality.RoundTrip / 2,
		loss:    quality.Loss,
		random:  rand.New(rand.NewPCG(quality.Seed, direction)),
		packets: make(chan packet, queued),
		done:    make(chan struct{}),
		buffers: sync.Pool{New: func() any { return new([mtu]byte) }},
	}
}

// close ends the relay; each file is one relay's to read from.
func (r *relay) close() {
	r.closing.Do(func() {
		close(r.done)
		r.from.Close()
	})
}

// read takes packets until the relay is closed. It loses some, and all that would
// be too many.
func (r *relay) read() {
	defer close(r.packets)
	for {
		buffer := r.buffers.Get().(*[mtu]byte)
		n, err := r.from.Read(buffer[:])
		if err != nil {
			return
		}
		if r.loss > 0 && r.random.Float64() < r.loss {
			r.buffers.Put(buffer)
			continue
		}
		select {
		case r.packets <- packet{due: time.Now().Add(r.delay), buffer: buffer, size: n}:
		default:
			r.buffers.Put(buffer)
		}
	}
}

// write delivers packets in order, each when it is due.
func (r *relay) write() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for p := range r.packets {
		if wait := time.Until(p.due); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-r.done:
				return
			}
		}
		// A device that is down or gone takes no packets, as a cable would.
		_, _ = r.to.Write(p.buffer[:p.size])
		r.buffers.Put(p.buffer)
	}
}
