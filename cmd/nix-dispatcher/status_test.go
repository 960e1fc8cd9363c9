// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"encoding/json"
	"net"
	"net/http"
	"strings"
	"testing"

	"nixbuilder.io/nix-builder-operator/internal/dispatch/statuspage"
)

func TestStatusPageIsServed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	address := freeAddress(t)
	writeMachines(t, dir, "ssh-ng://nix@192.0.2.1 x86_64-linux - 2 3 kvm\n")
	d := start(t, dir, "-status-address="+address)
	d.eventually(t, "")
	status, text := get(t, "http://"+address+"/status.json")
	var document statuspage.Document
	if err := json.Unmarshal([]byte(text), &document); err != nil || status != http.StatusOK {
		t.Fatalf("status %d, %v:\n%s", status, err, text)
	}
	if n := len(document.Builders); n != 1 {
		t.Fatalf("%d builders, want 1:\n%s", n, text)
	}
	b := document.Builders[0]
	if b.ID != "machines/192.0.2.1" || b.State != statuspage.StateHealthy || b.Slots != 2 || b.SpeedFactor != 3 {
		t.Errorf("builder = %+v", b)
	}
	if document.Started.IsZero() || document.Version == "" || document.Spool.MaxBytes != 10<<30 {
		t.Errorf("document = %+v", document)
	}
	if status, page := get(t, "http://"+address+"/"); status != http.StatusOK || !strings.Contains(page, "machines/192.0.2.1") {
		t.Errorf("status of the page %d:\n%s", status, page)
	}
	d.stop(t)
	if conn, err := net.Dial("tcp", address); err == nil {
		conn.Close()
		t.Error("the status page is still served")
	}
}

func TestStatusAddress(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"127.0.0.1:9465": "", "127.9.9.9:0": "", "[::1]:9465": "", "localhost:9465": "", "Localhost:1": "",
		":9465":               "needs a loopback address",
		"0.0.0.0:9465":        "needs a loopback address",
		"[::]:9465":           "needs a loopback address",
		"192.0.2.1:9465":      "needs a loopback address",
		"localhost.example:1": "needs a loopback address",
		"9465":                "must be an address such as",
		"127.0.0.1":           "must be an address such as",
	} {
		_, err := parseFlags([]string{"-status-address=" + address})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("--status-address=%s: error = %v, want one with %q", address, err, want)
		}
	}
}

func TestStatusAddressInUse(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	metrics := freeAddress(t)
	err = run(t.Context(), append(flags(t, t.TempDir()), "-metrics-address="+metrics, "-status-address="+l.Addr().String()))
	if err == nil || !strings.Contains(err.Error(), "--status-address") {
		t.Errorf("error = %v, want one that names the flag", err)
	}
	if conn, err := net.Dial("tcp", metrics); err == nil {
		conn.Close()
		t.Error("metrics are still served")
	}
}
