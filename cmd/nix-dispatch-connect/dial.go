// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"errors"
	"io"
	"os"
	"strconv"
	"syscall"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/connect"
)

// dialTimeout bounds the wait for a dispatcher whose backlog is full. Nix
// stands still meanwhile: it starts nothing else until its hook answers.
const dialTimeout = 10 * time.Second

// conn is the connection to the dispatcher.
type conn struct {
	*os.File
	fd   int
	path string
	// header is what was sent first.
	header connect.Header
}

// dial connects without package net. It does not try again after a refusal:
// Nix moves on to its next line by itself, and there can be many.
func dial(path string) (*conn, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0) // nothing is executed that could inherit it
	if err != nil {
		return nil, errors.New("cannot make a socket: " + err.Error())
	}
	if err := connectWithin(fd, path, dialTimeout); err != nil {
		_ = syscall.Close(fd)
		return nil, explain(path, err)
	}
	// From here on the runtime's poller waits, so that both directions can
	// block without a thread each.
	if err := syscall.SetNonblock(fd, true); err != nil {
		_ = syscall.Close(fd)
		return nil, errors.New("cannot set up the socket: " + err.Error())
	}
	return &conn{File: os.NewFile(uintptr(fd), path), fd: fd, path: path}, nil
}

// connectWithin connects a blocking socket. The send timeout bounds connect on
// a unix socket, which then ends in EAGAIN; with a timeout set, a signal ends
// it in EINTR.
func connectWithin(fd int, path string, timeout time.Duration) error {
	limit := syscall.NsecToTimeval(int64(timeout))
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &limit); err != nil {
		return err
	}
	for {
		err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: path})
		if err != syscall.EINTR {
			return err
		}
	}
}

// explain says what to do about a connection that could not be made.
func explain(path string, err error) error {
	const logs = "; its log and its readiness say why"
	switch err {
	case syscall.ENOENT:
		return errors.New("there is no dispatcher socket " + path +
			": check that the nix-dispatcher container of this pod runs, and that the volume it writes to is mounted here at the same path" + logs)
	case syscall.ECONNREFUSED:
		return errors.New("nobody listens on " + path + ": the nix-dispatcher container of this pod is starting, stopping or gone" + logs)
	case syscall.EAGAIN:
		return errors.New("the dispatcher on " + path + " did not accept the connection within " + dialTimeout.String() + ": it is overloaded or hangs" + logs)
	case syscall.EINVAL:
		return errors.New(path + " cannot be the path of a socket, which has at most 107 bytes: mount the dispatcher's volume under a shorter path")
	case syscall.EACCES, syscall.EPERM:
		return errors.New("user " + strconv.Itoa(os.Getuid()) + " may not connect to " + path +
			": the nix-dispatcher makes the socket writable for everybody, so look at the mode of the directories above it and at the security profile of this container")
	}
	return errors.New("cannot connect to " + path + ": " + err.Error())
}

// send writes the header.
func (c *conn) send(header connect.Header) error {
	c.header = header
	message, err := header.Append(nil)
	if err != nil {
		return err
	}
	if _, err := c.Write(message); err != nil {
		return errors.New("the dispatcher on " + c.path + " closed the connection at once (" + cause(err) + "); see its log")
	}
	return nil
}

// inquiryTimeout bounds the question to a dispatcher that has just ended a connection.
const inquiryTimeout = 2 * time.Second

// inquire asks the dispatcher why it has ended the connection. It returns nothing if
// that has no reason, or cannot be asked any more.
func (c *conn) inquire() string {
	again, err := dial(c.path)
	if err != nil {
		return ""
	}
	defer again.Close()
	_ = again.SetDeadline(time.Now().Add(inquiryTimeout)) // fails only where there are no deadlines
	header := c.header
	header.Inquiry = true
	if again.send(header) != nil {
		return ""
	}
	answer := make([]byte, connect.MaxReason)
	n, _ := io.ReadFull(again, answer)
	return string(answer[:n])
}

// cause is err without the operation and path that os puts before it.
func cause(err error) string {
	var pathError *os.PathError
	if errors.As(err, &pathError) {
		return pathError.Err.Error()
	}
	return err.Error()
}
