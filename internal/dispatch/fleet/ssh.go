// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// errHostKey means that there is no key by which to know the builder.
var errHostKey = errors.New("host key unknown")

const (
	// keyName is the private key in the directory of a credential: the key of
	// a Secret of type kubernetes.io/ssh-auth.
	keyName = "ssh-privatekey"
	// certificateSuffix is what OpenSSH adds to a key's name for its
	// certificate.
	certificateSuffix = "-cert.pub"
	// maxKeyFile bounds what is read of a key file.
	maxKeyFile = 64 << 10
)

// errKey marks failures to get at a private key.
var errKey = errors.New("private key")

// SSHOptions configure [DialSSH].
type SSHOptions struct {
	// KeysDir has a directory for each credential that endpoints name.
	KeysDir string
	// IdentityFile is the private key for endpoints that name none.
	IdentityFile string
	// KnownHosts is a known_hosts file for endpoints without host keys.
	KnownHosts string
	// NetDial opens network connections; nil means without restrictions: the
	// list of builders comes from whoever runs the dispatcher.
	NetDial sshconn.DialFunc
	// Keepalive finds connections that died in silence; 10 s and 2 misses if
	// zero.
	Keepalive sshconn.Keepalive
}

// DialSSH returns a Dialer for real builders. Keys and known hosts are read
// anew for every connection, so that rotated ones are used.
func DialSSH(opts SSHOptions) Dialer {
	if opts.NetDial == nil {
		opts.NetDial = sshconn.NewDialer(nil)
	}
	if opts.Keepalive.Interval == 0 {
		opts.Keepalive = sshconn.Keepalive{Interval: 10 * time.Second, MaxMissed: 2}
	}
	doors := &doors{open: map[string]*door{}}
	return func(ctx context.Context, endpoint inventory.Endpoint) (Conn, error) {
		signers, err := opts.signers(endpoint)
		if err != nil {
			return nil, err
		}
		policy, err := opts.hostKeys(endpoint)
		if err != nil {
			return nil, err
		}
		config := sshconn.Config{
			Address:   address(endpoint),
			User:      endpoint.User,
			Signers:   signers,
			HostKeys:  policy,
			NetDial:   opts.NetDial,
			Keepalive: opts.Keepalive,
		}
		if endpoint.Jump != nil {
			leave, err := opts.through(ctx, doors, endpoint, &config)
			if err != nil {
				return nil, err
			}
			defer leave()
		}
		conn, err := sshconn.Dial(ctx, config)
		if err != nil {
			return nil, err
		}
		return sshConn{conn}, nil
	}
}

// sshConn adapts an SSH connection to Conn.
type sshConn struct{ *sshconn.Conn }

func (c sshConn) Start(ctx context.Context, command string) (Stream, error) {
	session, err := c.Conn.Start(ctx, command)
	if err != nil {
		return nil, err
	}
	return sshStream{session}, nil
}

// lastWords is how long a command that has failed may take to say why: its
// output can end before its standard error has arrived.
const lastWords = 500 * time.Millisecond

// sshStream adapts an SSH session to Stream.
type sshStream struct{ *sshconn.Session }

func (s sshStream) Stderr() string {
	ctx, cancel := context.WithTimeout(context.Background(), lastWords)
	defer cancel()
	_, _ = s.Wait(ctx) // whatever came of it, what was written counts
	return s.Session.Stderr()
}

func address(e inventory.Endpoint) string {
	return net.JoinHostPort(e.Host, strconv.Itoa(e.Port))
}

// signers reads the endpoint's private keys, in the order in which they are to
// be tried. As long as one is usable the others may be broken: that is what a
// rotation looks like in its middle.
func (o SSHOptions) signers(e inventory.Endpoint) ([]ssh.Signer, error) {
	var files []string
	for _, name := range e.Credentials {
		files = append(files, filepath.Join(o.KeysDir, name, keyName))
	}
	if e.IdentityFile != "" {
		files = append(files, e.IdentityFile)
	}
	if len(files) == 0 && o.IdentityFile != "" {
		files = append(files, o.IdentityFile)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%w: none is named for this builder: give its line a key file or the dispatcher --identity-file", errKey)
	}
	var signers []ssh.Signer
	var failures []error
	for _, file := range files {
		signer, err := readSigner(file)
		if err != nil {
			failures = append(failures, fmt.Errorf("%w %s: %w", errKey, file, err))
			continue
		}
		signers = append(signers, signer)
	}
	if len(signers) == 0 {
		return nil, errors.Join(failures...)
	}
	return signers, nil
}

// readSigner reads a private key and the certificate beside it, if there is one.
func readSigner(file string) (ssh.Signer, error) {
	key, err := readSmall(file)
	if err != nil {
		return nil, err
	}
	certificate, err := readSmall(file + certificateSuffix)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return sshconn.ParseKey(key, certificate)
}

// readSmall reads a file of limited size. Errors name no part of its content.
func readSmall(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, withoutPath(err)
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, withoutPath(err)
	}
	if len(content) > maxKeyFile {
		return nil, fmt.Errorf("larger than %d bytes", maxKeyFile)
	}
	return content, nil
}

// withoutPath drops the path that the caller's message has already.
func withoutPath(err error) error {
	var pathError *os.PathError
	if errors.As(err, &pathError) {
		return pathError.Err
	}
	return err
}

// hostKeys returns which keys the endpoint may show: those it is listed with,
// else those of the known_hosts file. There is no third way: an unknown builder
// is not trusted with anybody's sources.
func (o SSHOptions) hostKeys(e inventory.Endpoint) (sshconn.HostKeyPolicy, error) {
	var policy sshconn.HostKeyPolicy
	for _, list := range []struct {
		lines []string
		keys  *[]ssh.PublicKey
	}{{e.HostKeys, &policy.Pinned}, {e.CertificateAuthorities, &policy.Authorities}} {
		for _, line := range list.lines {
			key, err := sshconn.ParsePublicKey(line)
			if err != nil {
				return policy, fmt.Errorf("host key: %w", err)
			}
			*list.keys = append(*list.keys, key)
		}
	}
	if len(policy.Pinned)+len(policy.Authorities) > 0 {
		return policy, nil
	}
	if o.KnownHosts == "" {
		return policy, fmt.Errorf("%w: its line has no host key (8th column): add it, or give the dispatcher --known-hosts", errHostKey)
	}
	content, err := os.ReadFile(o.KnownHosts)
	if err != nil {
		return policy, fmt.Errorf("%w: %w", errHostKey, err)
	}
	policy = sshconn.KnownHosts(content, e.Host, e.Port)
	if len(policy.Pinned)+len(policy.Authorities) == 0 {
		return policy, fmt.Errorf("%w: neither its line (8th column) nor %s has one for %s", errHostKey, o.KnownHosts, sshconn.KnownHostName(e.Host, e.Port))
	}
	return policy, nil
}
