// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshtest

import (
	"errors"
	"io"
	"net"
	"strconv"
	"sync"

	"golang.org/x/crypto/ssh"
)

// Prohibited is how OpenSSH refuses to pass a connection on that its configuration does
// not allow.
func Prohibited() error {
	return &ssh.OpenChannelError{Reason: ssh.Prohibited, Message: "open failed"}
}

// forward passes one connection on (RFC 4254 section 7.2) until either side ends it.
func (s *Server) forward(offered ssh.NewChannel, b Behavior) {
	var target struct {
		Host       string
		Port       uint32
		OriginHost string
		OriginPort uint32
	}
	if ssh.Unmarshal(offered.ExtraData(), &target) != nil || b.Forward == nil {
		_ = offered.Reject(ssh.Prohibited, "open failed")
		return
	}
	conn, err := b.Forward(net.JoinHostPort(target.Host, strconv.Itoa(int(target.Port))))
	if err != nil {
		var told *ssh.OpenChannelError
		if !errors.As(err, &told) {
			told = &ssh.OpenChannelError{Reason: ssh.ConnectionFailed, Message: err.Error()}
		}
		_ = offered.Reject(told.Reason, told.Message)
		return
	}
	defer func() { _ = conn.Close() }()
	channel, requests, err := offered.Accept()
	if err != nil {
		return
	}
	defer func() { _ = channel.Close() }()
	var work sync.WaitGroup
	work.Go(func() {
		ssh.DiscardRequests(requests) // they end with the channel
		_ = conn.Close()
	})
	work.Go(func() {
		_, _ = io.Copy(conn, channel)
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	})
	_, _ = io.Copy(channel, conn)
	_ = channel.Close()
	work.Wait()
}
