// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// freeAddress returns an address that nothing listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// get returns status and body of a page.
func get(t *testing.T, url string) (int, string) {
	t.Helper()
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func TestMetricsAreServed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	address := freeAddress(t)
	writeMachines(t, dir, "ssh-ng://nix@192.0.2.1 x86_64-linux - 2\n")
	d := start(t, dir, "-metrics-address="+address)
	d.eventually(t, "")
	status, body := get(t, "http://"+address+"/metrics")
	if status != http.StatusOK {
		t.Fatalf("status %d: %s", status, body)
	}
	for _, want := range []string{
		`nix_dispatcher_builder_slots{builder="machines/192.0.2.1"} 2`, `nix_dispatcher_builds{phase="Queued"} 0`,
		"nix_dispatcher_client_connections ", "nix_dispatcher_spool_limit_bytes 1.073741824e+10",
		"go_goroutines ", "process_open_fds ",
	} {
		if !strings.Contains(body, "\n"+want) {
			t.Errorf("metrics lack %q:\n%s", want, body)
		}
	}
	if status, _ := get(t, "http://"+address+"/"); status != http.StatusNotFound {
		t.Errorf("status of another page = %d", status)
	}

	// A connection that says nothing does not delay the end.
	idle, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	began := time.Now()
	d.stop(t)
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %v to end", took)
	}
	if conn, err := net.Dial("tcp", address); err == nil {
		conn.Close()
		t.Error("metrics are still served")
	}
}

func TestMetricsAddressInUse(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = run(t.Context(), append(flags(t, t.TempDir()), "-metrics-address="+l.Addr().String()))
	if err == nil || !strings.Contains(err.Error(), "--metrics-address") {
		t.Errorf("error = %v, want one that names the flag", err)
	}
}

func TestMetricsAddressWithoutPort(t *testing.T) {
	t.Parallel()
	err := run(t.Context(), append(flags(t, t.TempDir()), "-metrics-address=9464"))
	if err == nil || !strings.Contains(err.Error(), "must be an address such as :9464") {
		t.Errorf("error = %v, want one that shows an address", err)
	}
}
