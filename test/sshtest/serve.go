// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshtest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

const identification = "SSH-2.0-sshtest\r\n"

// serve handles one connection. It returns when the connection has ended.
func (s *Server) serve(conn *gatedConn, b Behavior) {
	switch b.Fault {
	case FaultHangUp:
		return
	case FaultSilent:
		_, _ = io.Copy(io.Discard, conn)
		return
	case FaultDead:
		<-s.stop
		return
	case FaultText:
		_, _ = io.WriteString(conn, b.Text)
		// A close with unread input would reset the connection under the text.
		if half, ok := conn.Conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		_, _ = io.Copy(io.Discard, conn)
		return
	case FaultStopBeforeKex:
		_, _ = io.WriteString(conn, identification)
		_, _ = io.Copy(io.Discard, conn)
		return
	case FaultHangUpAtKex:
		_, _ = io.WriteString(conn, identification)
		_, _ = conn.Read(make([]byte, 1024))
		return
	}
	if b.Preamble != "" {
		_, _ = io.WriteString(conn, b.Preamble)
	}
	server, channels, requests, err := ssh.NewServerConn(conn, s.config(conn, b))
	if err != nil {
		return
	}
	var work sync.WaitGroup
	work.Go(func() {
		for request := range requests {
			if request.WantReply && b.Fault != FaultIgnoreGlobal {
				_ = request.Reply(false, nil)
			}
		}
	})
	for channel := range channels {
		work.Go(func() { s.session(channel, b) })
	}
	_ = server.Close()
	work.Wait()
}

var errRefused = errors.New("not authorized")

func (s *Server) config(conn *gatedConn, b Behavior) *ssh.ServerConfig {
	config := &ssh.ServerConfig{ServerVersion: strings.TrimSpace(identification)}
	if b.Fault == FaultOldAlgorithms {
		config.KeyExchanges = []string{ssh.InsecureKeyExchangeDH1SHA1}
	}
	if b.Fault == FaultPasswordOnly {
		config.PasswordCallback = func(ssh.ConnMetadata, []byte) (*ssh.Permissions, error) { return nil, errRefused }
	} else {
		config.PublicKeyCallback = func(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			return s.login(conn, b, meta, key)
		}
	}
	keys := b.HostKeys
	if len(keys) == 0 {
		keys = []ssh.Signer{s.hostKey}
	}
	for _, key := range keys {
		config.AddHostKey(key)
	}
	return config
}

func (s *Server) login(conn *gatedConn, b Behavior, meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
	switch b.Fault {
	case FaultStopAtLogin:
		conn.setFrozen(true)
		conn.pass()
		return nil, errRefused
	case FaultHangUpAtLogin:
		_ = conn.Close()
		return nil, errRefused
	case FaultSecondFactor:
		return nil, &ssh.PartialSuccessError{Next: ssh.ServerAuthCallbacks{
			PasswordCallback: func(ssh.ConnMetadata, []byte) (*ssh.Permissions, error) { return nil, errRefused },
		}}
	}
	if b.Users != nil && !slices.Contains(b.Users, meta.User()) {
		return nil, errRefused
	}
	if len(b.UserAuthorities) > 0 {
		checker := ssh.CertChecker{IsUserAuthority: func(auth ssh.PublicKey) bool { return has(b.UserAuthorities, auth) }}
		if _, err := checker.Authenticate(meta, key); err == nil {
			return &ssh.Permissions{}, nil
		}
	}
	restricted := b.AuthorizedKeys != nil || b.UserAuthorities != nil
	if restricted && !has(b.AuthorizedKeys, key) {
		return nil, errRefused
	}
	return &ssh.Permissions{}, nil
}

func has(keys []ssh.PublicKey, key ssh.PublicKey) bool {
	return slices.ContainsFunc(keys, func(k ssh.PublicKey) bool {
		return bytes.Equal(k.Marshal(), key.Marshal())
	})
}

// session serves one channel until the client or the command has ended it.
func (s *Server) session(offered ssh.NewChannel, b Behavior) {
	switch {
	case b.Fault == FaultRefuseSessions:
		_ = offered.Reject(ssh.ResourceShortage, "open failed")
		return
	case b.Fault == FaultStopAtSession:
		<-s.stop
		return
	case offered.ChannelType() == "direct-tcpip":
		s.forward(offered, b)
		return
	case offered.ChannelType() != "session":
		_ = offered.Reject(ssh.UnknownChannelType, "only sessions")
		return
	}
	channel, requests, err := offered.Accept()
	if err != nil {
		return
	}
	defer func() { _ = channel.Close() }()
	var work sync.WaitGroup
	defer work.Wait()
	done := make(chan struct{})
	defer close(done)
	for request := range requests {
		if request.Type != "exec" {
			_ = request.Reply(false, nil)
			continue
		}
		switch b.Fault {
		case FaultStopAtExec:
			continue
		case FaultCloseAtExec:
			return
		case FaultRefuseExec:
			_ = request.Reply(false, nil)
			continue
		}
		var exec struct{ Command string }
		if ssh.Unmarshal(request.Payload, &exec) != nil {
			_ = request.Reply(false, nil)
			continue
		}
		_ = request.Reply(true, nil)
		work.Go(func() { run(channel, done, exec.Command, b) })
	}
}

// run runs a command and ends the session with its status.
func run(channel ssh.Channel, done <-chan struct{}, command string, b Behavior) {
	exec := b.Exec
	if exec == nil {
		exec = notFound
	}
	status := exec(command, Stdio{Done: done, Stdin: channel, Stdout: channel, Stderr: channel.Stderr()})
	_ = channel.CloseWrite()
	switch {
	case b.Fault == FaultNoExitStatus:
	case status == KilledBySignal:
		_, _ = channel.SendRequest("exit-signal", false, ssh.Marshal(struct {
			Name       string
			CoreDumped bool
			Message    string
			Language   string
		}{Name: string(ssh.SIGKILL)}))
	default:
		_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(status)}))
	}
	_ = channel.Close()
}

func notFound(command string, stdio Stdio) int {
	program, _, _ := strings.Cut(command, " ")
	_, _ = fmt.Fprintf(stdio.Stderr, "sh: 1: %s: not found\n", program)
	return 127
}
