// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/connect"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
)

// A client that has the machines file of an earlier dispatcher may connect before the
// new one has read its list of builders.
func TestClientBeforeTheFirstListOfBuilders(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := start(t, dir)
	socket := filepath.Join(dir, "volume", connect.SocketName)
	conn, err := net.Dial("unix", socket)
	for deadline := time.Now().Add(patience); err != nil && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		conn, err = net.Dial("unix", socket)
	}
	if err != nil {
		t.Fatal(err)
	}
	header, err := connect.Header{Target: connect.Target{Class: "x86_64-linux"}, Namespace: 1, Hook: connect.Process{PID: 1}}.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(header); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(builderPatience/10, func() { writeMachines(t, dir, "ssh-ng://nix@192.0.2.1 x86_64-linux - 2\n") })
	client, err := daemon.NewClient(t.Context(), conn, daemon.ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.QueryValidPaths(t.Context(), nil, false, nil); err != nil {
		t.Error(err)
	}
	client.Close()
	d.stop(t)
}
