// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package inventory

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	keyA = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	keyB = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB"
)

// full is an endpoint with a value in every field.
func full(builder, name string) Endpoint {
	until := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	return Endpoint{
		Builder: builder, Name: name, Host: name + ".example.org", Port: 2222, User: "nix",
		HostKeys: []string{keyA, keyB}, CertificateAuthorities: []string{keyB},
		Credentials: []string{"new", "a-older"}, RemoteProgram: "/opt/bin/nix-daemon",
		Systems: []string{"aarch64-darwin", "x86_64-darwin"}, SupportedFeatures: []string{"benchmark", "big-parallel"},
		MandatoryFeatures: []string{"xcode"}, Slots: 4, SpeedFactor: 2,
		State: StateUnhealthy, Reason: "ConnectionRefused", Message: "nobody listens",
		Since:  time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Cordon: &Cordon{Reason: "new disk", Until: &until},
	}
}

// small is an endpoint with the fewest fields.
func small(builder, name string) Endpoint {
	return Endpoint{
		Builder: builder, Name: name, Host: "h", Port: 22, User: "root", Slots: 1, SpeedFactor: 1, State: StateUnknown,
	}
}

func TestEncode(t *testing.T) {
	t.Parallel()
	got, err := Encode(Document{Builders: []Endpoint{small("mac", "b"), full("mac", "a")}})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"schemaVersion":1,"builders":[
{"builder":"mac","name":"a","host":"a.example.org","port":2222,"user":"nix","hostKeys":["` + keyA + `","` + keyB +
		`"],"certificateAuthorities":["` + keyB + `"],"credentials":["new","a-older"],` +
		`"remoteProgram":"/opt/bin/nix-daemon","systems":["aarch64-darwin","x86_64-darwin"],` +
		`"supportedFeatures":["benchmark","big-parallel"],"mandatoryFeatures":["xcode"],"slots":4,"speedFactor":2,` +
		`"state":"Unhealthy","reason":"ConnectionRefused","message":"nobody listens","since":"2026-01-02T03:04:05Z",` +
		`"cordon":{"reason":"new disk","until":"2026-03-04T05:06:07Z"}},
{"builder":"mac","name":"b","host":"h","port":22,"user":"root","slots":1,"speedFactor":1,"state":"Unknown"}
]}
`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("Encode (-want +got):\n%s", diff)
	}
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	want := Document{SchemaVersion: 1, Builders: []Endpoint{full("linux", "a"), small("linux", "b"), full("mac", "a")}}
	text, err := Encode(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(text)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Decode(Encode(d)) (-want +got):\n%s", diff)
	}
}

func TestEncodeIsTheSameForEqualDocuments(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	shuffle := func(list []string) {
		random.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	}
	var want string
	for range 50 {
		document := Document{Builders: []Endpoint{full("mac", "a"), full("mac", "b"), small("linux", "a")}}
		random.Shuffle(3, func(i, j int) {
			document.Builders[i], document.Builders[j] = document.Builders[j], document.Builders[i]
		})
		for i := range document.Builders {
			e := &document.Builders[i]
			e.Systems = append(e.Systems, e.Systems...)
			if !e.Since.IsZero() {
				e.Since = e.Since.In(time.FixedZone("", 3600)).Add(time.Duration(random.IntN(1000)) * time.Millisecond)
			}
			for _, list := range [][]string{e.Systems, e.SupportedFeatures, e.HostKeys, e.CertificateAuthorities} {
				shuffle(list)
			}
		}
		first := document.Builders[0].Name
		got, err := Encode(document)
		if err != nil {
			t.Fatal(err)
		}
		if want == "" {
			want = string(got)
		}
		if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Fatalf("Encode of the same endpoints (-first +this):\n%s", diff)
		}
		if document.Builders[0].Name != first {
			t.Fatal("Encode changed its argument")
		}
	}
}

func TestDecodeToleratesNewer(t *testing.T) {
	t.Parallel()
	got, err := Decode([]byte(`{"schemaVersion": 1, "weather": "fine", "builders": [
		{"builder": "b", "name": "n", "host": "h", "port": 22, "user": "root", "slots": 1, "speedFactor": 1,
		 "state": "Draining", "colour": ["red"]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Document{SchemaVersion: 1, Builders: []Endpoint{small("b", "n")}}, got); diff != "" {
		t.Errorf("Decode (-want +got):\n%s", diff)
	}
}

func TestDecodeVersion(t *testing.T) {
	t.Parallel()
	_, err := Decode([]byte(`{"schemaVersion": 2, "builders": {"of": "another type"}}`))
	var version *VersionError
	if !errors.As(err, &version) || version.Version != 2 {
		t.Fatalf("error %v, want a *VersionError of version 2", err)
	}
	const want = "the list of builders has schema version 2 and this program reads version 1: " +
		"run the same release of operator and dispatcher"
	if err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
}

func TestDecodeErrors(t *testing.T) {
	t.Parallel()
	const endpoint = `{"builder":"b","name":"n","host":"h","port":22,"user":"u","slots":1,"speedFactor":1`
	const begin, end = `{"schemaVersion":1,"builders":[`, `}]}`
	// document is one with some fields of the endpoint overridden.
	document := func(override string) string { return begin + endpoint + override + end }
	const twice = begin + endpoint + "}," + endpoint + end
	tests := map[string]struct{ text, want string }{
		"empty":                 {"", "unexpected end of JSON input"},
		"not an object":         {"[]", "cannot unmarshal array"},
		"no version":            {`{"builders":[]}`, "it has no schemaVersion"},
		"too large":             {strings.Repeat(" ", MaxSize+1), "larger than 1048576 bytes"},
		"wrong type":            {document(`,"port":"ssh"`), "cannot unmarshal string"},
		"no host":               {document(`,"host":""`), `builder "b/n": host is missing`},
		"host like an option":   {document(`,"host":"-x"`), `host "-x" is not a name`},
		"host with a newline":   {document(`,"host":"a\nb"`), `host "a\nb" is not a name`},
		"long name":             {document(`,"name":"` + strings.Repeat("x", 254) + `"`), "name is longer than 253 bytes"},
		"name with a slash":     {document(`,"name":"a/b"`), `name "a/b" is not a name`},
		"no user":               {document(`,"user":""`), "user is missing"},
		"key outside":           {document(`,"credentials":["../../etc"]`), `credential "../../etc" is not a name`},
		"port 0":                {document(`,"port":0`), "port is 0, not between 1 and 65535"},
		"port too large":        {document(`,"port":65536`), "port is 65536, not between 1 and 65535"},
		"no slots":              {document(`,"slots":0`), "slots is 0, not between 1 and 65536"},
		"speed 0":               {document(`,"speedFactor":0`), "speedFactor is 0"},
		"the same twice":        {twice, `builder "b/n" is listed twice`},
		"more after the object": {document("") + "x", "invalid character 'x'"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Decode([]byte(tc.text))
			if err == nil {
				t.Fatalf("Decode(%q) succeeded", tc.text)
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %q does not say %q", err, tc.want)
			}
		})
	}
}

func TestEncodeErrors(t *testing.T) {
	t.Parallel()
	nameless := small("", "n")
	var many []Endpoint
	for i := range 4000 {
		many = append(many, full("b", fmt.Sprintf("n%d", i)))
	}
	tests := map[string]struct {
		builders []Endpoint
		want     string
	}{
		"no name":   {[]Endpoint{nameless}, "builder is missing"},
		"twice":     {[]Endpoint{small("b", "n"), small("a", "n"), full("b", "n")}, `"b/n" is listed twice`},
		"too large": {many, "larger than 1048576 bytes"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Encode(Document{Builders: tc.builders})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v does not say %q", err, tc.want)
			}
		})
	}
}

func TestCordonActiveAt(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	at := func(seconds int64) *time.Time { until := time.Unix(seconds, 0); return &until }
	tests := map[string]struct {
		cordon *Cordon
		want   bool
	}{
		"none":     {nil, false},
		"for ever": {&Cordon{}, true},
		"ahead":    {&Cordon{Until: at(1001)}, true},
		"now":      {&Cordon{Until: at(1000)}, false},
		"past":     {&Cordon{Until: at(999)}, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := tc.cordon.ActiveAt(now); got != tc.want {
				t.Errorf("ActiveAt = %v, want %v", got, tc.want)
			}
		})
	}
}

// FuzzDecode checks that what can be decoded is stable: written and read
// again it is the same.
func FuzzDecode(f *testing.F) {
	text, err := Encode(Document{Builders: []Endpoint{full("mac", "a"), small("mac", "b")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"schemaVersion":1}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		document, err := Decode(text)
		if err != nil {
			return
		}
		written, err := Encode(document)
		if err != nil {
			t.Fatalf("cannot write what was read: %v", err)
		}
		again, err := Decode(written)
		if err != nil {
			t.Fatalf("cannot read what was written: %v", err)
		}
		rewritten, err := Encode(again)
		if err != nil || string(rewritten) != string(written) {
			t.Fatalf("writing again gave %q, %v; want %q", rewritten, err, written)
		}
	})
}
