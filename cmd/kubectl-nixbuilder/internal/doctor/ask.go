// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package doctor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/controllers/machines"
)

// Cluster is what asking the operator takes. [cluster.Client] is one.
type Cluster interface {
	List(ctx context.Context, namespace string) ([]v1alpha1.NixBuilder, error)
	Patch(ctx context.Context, key types.NamespacedName, kind types.PatchType, patch []byte) error
	// Operator says what can be seen of the operator.
	Operator(ctx context.Context, now time.Time) string
}

// Progress shows what is waited for.
type Progress interface {
	Show(text string)
	Note(text string)
	Clear()
}

// Asking says what to ask the operator.
type Asking struct {
	// Namespace is where; all of them where it is empty.
	Namespace string
	// Names are the NixBuilders; all where there are none.
	Names []string
	// Only are the endpoints of a NixBuilder that are reported, all where it has none.
	// It is probed as a whole.
	Only map[string][]string
	// Timeout bounds the wait for answers. After Hint without any answer something
	// is said about the operator.
	Timeout, Hint time.Duration
	// Poll is the time between two looks.
	Poll time.Duration
}

// ErrNone means that there are no NixBuilders.
var ErrNone = errors.New("there are no NixBuilders")

// Ask has the operator probe NixBuilders now, waits, and reports what it found. Who did
// not answer in time is Unclear in the report. The error is about the cluster.
func Ask(ctx context.Context, c Cluster, a Asking, progress Progress) (*Report, error) {
	defer progress.Clear()
	all, err := c.List(ctx, a.Namespace)
	if err != nil {
		return nil, err
	}
	asked, err := choose(all, a)
	if err != nil {
		return nil, err
	}
	token := time.Now().UTC().Format(time.RFC3339Nano)
	for _, key := range asked {
		if err := request(ctx, c, key, token); err != nil {
			return nil, err
		}
	}
	w := &waiting{cluster: c, asking: a, progress: progress, token: token, open: slices.Clone(asked)}
	if all, err = w.wait(ctx); err != nil {
		return nil, err
	}
	return w.report(ctx, all, asked), nil
}

// choose finds the NixBuilders that are asked about.
func choose(all []v1alpha1.NixBuilder, a Asking) ([]types.NamespacedName, error) {
	var keys []types.NamespacedName
	for i := range all {
		if len(a.Names) == 0 || slices.Contains(a.Names, all[i].Name) {
			keys = append(keys, keyOf(&all[i]))
		}
	}
	for _, name := range a.Names {
		if !slices.ContainsFunc(keys, func(key types.NamespacedName) bool { return key.Name == name }) {
			return nil, fmt.Errorf("there is no NixBuilder %s in namespace %s", name, a.Namespace)
		}
	}
	if len(keys) == 0 && a.Namespace != "" {
		return nil, fmt.Errorf("%w in namespace %s (-A looks in all)", ErrNone, a.Namespace)
	}
	if len(keys) == 0 {
		return nil, ErrNone
	}
	for i := range all {
		if err := lacks(&all[i], a.Only[all[i].Name]); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(keys, func(a, b types.NamespacedName) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return keys, nil
}

// lacks complains about endpoints that a NixBuilder has not.
func lacks(builder *v1alpha1.NixBuilder, endpoints []string) error {
	var names []string
	for i := range builder.Spec.Endpoints {
		names = append(names, builder.Spec.Endpoints[i].Name)
	}
	for _, name := range endpoints {
		if !slices.Contains(names, name) {
			return fmt.Errorf("NixBuilder %s has no endpoint %s, only %s", builder.Name, name, strings.Join(names, ", "))
		}
	}
	return nil
}

func keyOf(builder *v1alpha1.NixBuilder) types.NamespacedName {
	return types.NamespacedName{Namespace: builder.Namespace, Name: builder.Name}
}

// request asks for a probe.
func request(ctx context.Context, c Cluster, key types.NamespacedName, token string) error {
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"annotations": map[string]string{v1alpha1.ProbeRequestAnnotation: token}},
	})
	if err != nil {
		return err
	}
	return c.Patch(ctx, key, types.MergePatchType, patch)
}

// waiting is a wait for answers.
type waiting struct {
	cluster  Cluster
	asking   Asking
	progress Progress
	token    string
	open     []types.NamespacedName // those without an answer
	hint     string
}

// wait looks again and again until all have answered or time is up, and returns the
// NixBuilders as they were at last. An API server that cannot be asked for a while ends
// nothing: the answers stay where they are.
func (w *waiting) wait(ctx context.Context) ([]v1alpha1.NixBuilder, error) {
	started := time.Now()
	ticker := time.NewTicker(w.asking.Poll)
	defer ticker.Stop()
	asked := len(w.open)
	for {
		all, err := w.cluster.List(ctx, w.asking.Namespace)
		if err == nil {
			w.open = slices.DeleteFunc(w.open, func(key types.NamespacedName) bool {
				builder := find(all, key)
				return builder == nil || answered(builder, w.token)
			})
		}
		passed := time.Since(started)
		switch {
		case len(w.open) == 0 || passed >= w.asking.Timeout:
			return all, err
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		}
		if err != nil {
			w.progress.Show(fmt.Sprintf("trying again to ask the cluster (%s): %v", passed.Round(time.Second), err))
		} else {
			w.tell(ctx, passed, len(w.open) == asked)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-ticker.C:
		}
	}
}

// tell shows who is waited for, and once what may be wrong where nobody has answered.
func (w *waiting) tell(ctx context.Context, passed time.Duration, none bool) {
	if w.hint == "" && none && passed >= w.asking.Hint {
		w.hint = w.cluster.Operator(ctx, time.Now())
		w.progress.Note(fmt.Sprintf("no answer for %s: %s", passed.Round(time.Second), w.hint))
	}
	w.progress.Show(fmt.Sprintf("waiting for the operator to probe %s (%s)", w.names(), passed.Round(time.Second)))
}

// names lists who is waited for.
func (w *waiting) names() string {
	const few = 3
	var names []string
	for _, key := range w.open {
		names = append(names, key.Name)
	}
	if len(names) > few {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:few], ", "), len(names)-few)
	}
	return strings.Join(names, ", ")
}

// answered reports whether the operator has answered our request. Of several it may answer
// the last one only: where somebody else has asked since, that probe is as good as ours,
// and ours may never be told of.
func answered(builder *v1alpha1.NixBuilder, token string) bool {
	last, wanted := builder.Status.LastProbe, builder.Annotations[v1alpha1.ProbeRequestAnnotation]
	return last != nil && last.Request != "" && (last.Request == token || last.Request == wanted)
}

func find(all []v1alpha1.NixBuilder, key types.NamespacedName) *v1alpha1.NixBuilder {
	for i := range all {
		if keyOf(&all[i]) == key {
			return &all[i]
		}
	}
	return nil
}

// report puts together what was found of those that were asked about.
func (w *waiting) report(ctx context.Context, all []v1alpha1.NixBuilder, asked []types.NamespacedName) *Report {
	now := time.Now()
	report := &Report{}
	for _, key := range asked {
		builder := find(all, key)
		switch {
		case builder == nil:
			b := Builder{Namespace: key.Namespace, Name: key.Name, Problem: "it was deleted meanwhile"}
			b.settle()
			report.Builders = append(report.Builders, b)
		case slices.Contains(w.open, key):
			report.Builders = append(report.Builders, w.unanswered(ctx, builder, now))
		default:
			b := FromStatus(builder, machines.Verdicts(inNamespace(all, key.Namespace), now), now)
			b.keep(w.asking.Only[key.Name])
			report.Builders = append(report.Builders, b)
		}
	}
	return report
}

// keep leaves out the machines that were not asked about.
func (b *Builder) keep(endpoints []string) {
	if len(endpoints) == 0 {
		return
	}
	b.Machines = slices.DeleteFunc(b.Machines, func(m Machine) bool { return !slices.Contains(endpoints, m.Name) })
	b.settle()
}

// unanswered reports a NixBuilder about which the operator said nothing, with what it
// said before.
func (w *waiting) unanswered(ctx context.Context, builder *v1alpha1.NixBuilder, now time.Time) Builder {
	if w.hint == "" {
		w.hint = w.cluster.Operator(ctx, now)
	}
	problem := fmt.Sprintf("the operator has not answered within %s: %s.", w.asking.Timeout, w.hint)
	if ready := builder.Status.Condition(v1alpha1.ConditionReady); ready != nil {
		problem += fmt.Sprintf(" What it said before: Ready is %s (%s): %s", ready.Status, ready.Reason, ready.Message)
	} else {
		problem += " It has never said anything about this NixBuilder."
	}
	b := Builder{Namespace: builder.Namespace, Name: builder.Name, Problem: problem}
	b.settle()
	return b
}

func inNamespace(all []v1alpha1.NixBuilder, namespace string) []v1alpha1.NixBuilder {
	var list []v1alpha1.NixBuilder
	for i := range all {
		if all[i].Namespace == namespace {
			list = append(list, all[i])
		}
	}
	return list
}
