// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

func TestScreenTellsWhatGoesOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		screen := newScreen(&out)
		stop := screen.watch("a long step")
		inner := screen.watch("one\ncommand")
		time.Sleep(7100 * time.Millisecond)
		inner()
		fmt.Fprintf(screen, "half a ")
		fmt.Fprintf(screen, "line\nand another")
		screen.say("a remark")
		time.Sleep(2600 * time.Millisecond)
		stop()
		time.Sleep(time.Minute)
		want := strings.Join([]string{
			"  … one (2 s)",
			"  … one (7 s)",
			"    half a line",
			"    and another",
			"  a remark",
			"  … a long step (10 s)",
			"",
		}, "\n")
		if diff := cmp.Diff(want, out.String()); diff != "" {
			t.Errorf("screen (-want +got):\n%s", diff)
		}
	})
}

func testShell(t *testing.T) (*shell, *bytes.Buffer) {
	t.Helper()
	var out bytes.Buffer
	return &shell{screen: newScreen(&out), dir: t.TempDir(), env: os.Environ()}, &out
}

func TestShellRun(t *testing.T) {
	t.Parallel()
	shell, out := testShell(t)
	got, err := shell.run(t.Context(), "echo shown; echo aside >&2")
	if err != nil {
		t.Fatal(err)
	}
	if got != "shown\n" {
		t.Errorf("standard output %q", got)
	}
	if want := "  $ echo shown; echo aside >&2\n"; !strings.HasPrefix(out.String(), want) || !strings.Contains(out.String(), "    aside\n") {
		t.Errorf("screen:\n%s", out)
	}
	if _, err := shell.run(t.Context(), "exit 3"); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("a failing command: %v", err)
	}
}

func TestBackgroundThatEnds(t *testing.T) {
	t.Parallel()
	shell, _ := testShell(t)
	program, err := shell.start("program", "sh", "-c", "'echo cannot go on; exit 4'")
	if err != nil {
		t.Fatal(err)
	}
	err = program.waitFor(t.Context(), time.Minute, "ready", func() bool { return false })
	if err == nil || !strings.Contains(err.Error(), "cannot go on") || !strings.Contains(err.Error(), "exit status 4") {
		t.Errorf("waiting for it: %v", err)
	}
	if err := program.stop(); err != nil {
		t.Errorf("stopping it: %v", err)
	}
}

func TestVolumeFollowsItsObject(t *testing.T) {
	t.Parallel()
	object := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "v"},
		Data:       map[string]string{"a": "1", "b": "2"},
	}
	cluster := fake.NewClientBuilder().WithObjects(object).Build()
	v := &volume{dir: t.TempDir(), object: &corev1.ConfigMap{}, name: "v"}
	for _, want := range []map[string]string{{"a": "1", "b": "2"}, {"a": "1", "b": "3"}} {
		if err := cluster.Get(context.Background(), client.ObjectKeyFromObject(object), object); err != nil {
			t.Fatal(err)
		}
		object.Data = want
		if err := cluster.Update(context.Background(), object); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second finds nothing to do
			if err := v.update(t.Context(), cluster); err != nil {
				t.Fatal(err)
			}
		}
		got := map[string]string{}
		for name := range want {
			text, err := os.ReadFile(filepath.Join(v.dir, name))
			if err != nil {
				t.Fatal(err)
			}
			got[name] = string(text)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("files (-want +got):\n%s", diff)
		}
	}
	left, err := filepath.Glob(filepath.Join(v.dir, "..[0-9]*"))
	if err != nil || len(left) != 1 {
		t.Errorf("%d generations of files are left (%v), want 1", len(left), err)
	}
}
