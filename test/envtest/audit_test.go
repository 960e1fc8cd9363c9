// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package envtest

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const auditLog = `{"stage":"ResponseComplete","verb":"get","user":{"username":"admin"},"objectRef":{"resource":"secrets","name":"key"},"responseStatus":{"code":200},"requestReceivedTimestamp":"2026-01-02T03:04:05.000000Z"}
{"stage":"ResponseComplete","verb":"patch","user":{"username":"operator"},"objectRef":{"resource":"nixbuilders","namespace":"ci","name":"mac","subresource":"status"},"responseStatus":{"code":200},"requestReceivedTimestamp":"2026-01-02T03:04:06.500000Z"}
{"stage":"ResponseComplete","verb":"update","user":{"username":"operator"},"objectRef":{"resource":"leases","namespace":"ci","name":"leader"},"responseStatus":{"code":409},"requestReceivedTimestamp":"2026-01-02T03:04:07.000000Z"}
`

func TestReadWrites(t *testing.T) {
	t.Parallel()
	second := time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC)
	patch := Write{Time: second.Add(500 * time.Millisecond), User: "operator", Verb: "patch", Resource: "nixbuilders/status", Namespace: "ci", Name: "mac", Code: 200}
	update := Write{Time: second.Add(time.Second), User: "operator", Verb: "update", Resource: "leases", Namespace: "ci", Name: "leader", Code: 409}
	tests := map[string]struct {
		log       string
		want      []Write
		wantError string
	}{
		"empty":                          {},
		"reads are left out":             {log: auditLog, want: []Write{patch, update}},
		"unfinished last line":           {log: auditLog + `{"verb":"cre`, want: []Write{patch, update}},
		"finished line that is not JSON": {log: auditLog + "{\"verb\":\"cre\n", wantError: "audit log, line 4"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := ReadWrites(strings.NewReader(tc.log))
			if tc.wantError != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantError) {
					t.Fatalf("ReadWrites: %v, want an error with %q", err, tc.wantError)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("writes (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCountWrites(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(seconds int, user, resource string) Write {
		return Write{Time: start.Add(time.Duration(seconds) * time.Second), User: user, Resource: resource}
	}
	writes := []Write{
		at(-1, "operator", "configmaps"),
		at(0, "operator", "leases"),
		at(1, "operator", "leases"),
		at(1, "admin", "leases"),
		at(2, "operator", "configmaps"),
	}
	want := map[WriteKey]int{
		{User: "operator", Resource: "leases"}: 2,
		{User: "admin", Resource: "leases"}:    1,
	}
	got := CountWrites(writes, start, start.Add(2*time.Second))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
}
