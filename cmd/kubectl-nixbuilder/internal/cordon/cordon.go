// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package cordon takes builders, or single machines of them, out of use and back, without
// touching what others change at the same time.
package cordon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/cluster"
)

// Cluster is what a change takes. [cluster.Client] is one.
type Cluster interface {
	Get(ctx context.Context, key types.NamespacedName) (*v1alpha1.NixBuilder, error)
	Patch(ctx context.Context, key types.NamespacedName, kind types.PatchType, patch []byte) error
}

// Subject is a NixBuilder, or one of its machines.
type Subject struct {
	Builder types.NamespacedName
	// Endpoint is empty for the whole NixBuilder.
	Endpoint string
}

// ParseSubject reads NAME or NAME/ENDPOINT.
func ParseSubject(namespace, text string) (Subject, error) {
	builder, endpoint, one := strings.Cut(text, "/")
	if builder == "" || one && (endpoint == "" || strings.Contains(endpoint, "/")) {
		return Subject{}, fmt.Errorf("%q is neither NAME nor NAME/ENDPOINT", text)
	}
	return Subject{types.NamespacedName{Namespace: namespace, Name: builder}, endpoint}, nil
}

// String is what was read.
func (s Subject) String() string {
	if s.Endpoint == "" {
		return s.Builder.Name
	}
	return s.Builder.Name + "/" + s.Endpoint
}

// attempts is how often a change is tried that others get in the way of.
const attempts = 5

// Set cordons, or uncordons where cordon is nil. It returns the NixBuilder as it was
// before, and whether anything was changed.
func Set(ctx context.Context, c Cluster, s Subject, cordon *v1alpha1.Cordon) (*v1alpha1.NixBuilder, bool, error) {
	var err error
	for range attempts {
		var before *v1alpha1.NixBuilder
		if before, err = c.Get(ctx, s.Builder); err != nil {
			return nil, false, err
		}
		var kind types.PatchType
		var patch []byte
		if kind, patch, err = s.patch(before, cordon); err != nil || patch == nil {
			return before, false, err
		}
		err = c.Patch(ctx, s.Builder, kind, patch)
		var conflict *cluster.ConflictError
		if !errors.As(err, &conflict) {
			return before, err == nil, err
		}
	}
	return nil, false, err
}

// patch makes the change of an object. It is nil where there is nothing to change.
func (s Subject) patch(builder *v1alpha1.NixBuilder, cordon *v1alpha1.Cordon) (types.PatchType, []byte, error) {
	if s.Endpoint != "" {
		return s.patchEndpoint(builder, cordon)
	}
	if same(builder.Spec.Cordon, cordon) {
		return "", nil, nil
	}
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"cordon": complete(cordon)}})
	return types.MergePatchType, patch, err
}

// complete says nothing of what a merge could keep from an earlier cordon.
func complete(cordon *v1alpha1.Cordon) any {
	if cordon == nil {
		return nil
	}
	return map[string]any{"reason": cordon.Reason, "until": cordon.Until}
}

// patchEndpoint finds the endpoint by its place in the list, and has the API server
// check that it is the one still.
func (s Subject) patchEndpoint(builder *v1alpha1.NixBuilder, cordon *v1alpha1.Cordon) (types.PatchType, []byte, error) {
	var names []string
	for i := range builder.Spec.Endpoints {
		endpoint := &builder.Spec.Endpoints[i]
		if endpoint.Name != s.Endpoint {
			names = append(names, endpoint.Name)
			continue
		}
		if same(endpoint.Cordon, cordon) {
			return "", nil, nil
		}
		path := fmt.Sprintf("/spec/endpoints/%d/", i)
		change := map[string]any{"op": "remove", "path": path + "cordon"}
		if cordon != nil {
			change = map[string]any{"op": "add", "path": path + "cordon", "value": cordon}
		}
		patch, err := json.Marshal([]map[string]any{{"op": "test", "path": path + "name", "value": s.Endpoint}, change})
		return types.JSONPatchType, patch, err
	}
	return "", nil, fmt.Errorf("NixBuilder %s has no endpoint %s, only %s", s.Builder.Name, s.Endpoint, strings.Join(names, ", "))
}

func same(a, b *v1alpha1.Cordon) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Reason == b.Reason && a.Until.Equal(b.Until)
}

// forms are those in which a time can be given, in the local time zone unless it has
// one.
var forms = []string{time.RFC3339, "2006-01-02T15:04", "2006-01-02 15:04", "2006-01-02"}

// ParseUntil reads when a cordon is to end: a time, a time of day, or a duration from
// now such as 90m, 36h or 7d.
func ParseUntil(text string, now time.Time) (time.Time, error) {
	until, err := parseTime(text, now)
	switch {
	case err != nil:
		return time.Time{}, err
	case !until.After(now):
		return time.Time{}, fmt.Errorf("%s is over already", until.Format(time.RFC3339))
	}
	// The API keeps whole seconds.
	return until.Truncate(time.Second), nil
}

func parseTime(text string, now time.Time) (time.Time, error) {
	var days int
	if n, err := fmt.Sscanf(text, "%dd", &days); n == 1 && err == nil && text == fmt.Sprintf("%dd", days) {
		return now.AddDate(0, 0, days), nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		return now.Add(d), nil
	}
	if clock, err := time.ParseInLocation("15:04", text, now.Location()); err == nil {
		at := time.Date(now.Year(), now.Month(), now.Day(), clock.Hour(), clock.Minute(), 0, 0, now.Location())
		if !at.After(now) {
			at = at.AddDate(0, 0, 1)
		}
		return at, nil
	}
	for _, form := range forms {
		if at, err := time.ParseInLocation(form, text, now.Location()); err == nil {
			return at, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is not a time: write 90m, 7d, 18:00, \"2030-01-04 18:00\" or 2030-01-04T18:00:00Z", text)
}
