// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// volumeInterval is how often volumes are brought up to date. A real kubelet
// takes up to a minute or so.
const volumeInterval = 2 * time.Second

// volume is a ConfigMap or Secret that a pod would mount.
type volume struct {
	dir     string
	object  client.Object
	name    string
	current map[string][]byte
}

// mount fills directories from objects the way a kubelet does for a pod's
// volumes, and keeps them up to date until stop is called.
func (d *demo) mount(ctx context.Context, volumes ...*volume) (stop func() error, err error) {
	reader, err := d.cluster.Client(scheme.Scheme)
	if err != nil {
		return nil, err
	}
	for _, v := range volumes {
		if err := v.update(ctx, reader); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(volumeInterval)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			for _, v := range volumes {
				if err := v.update(ctx, reader); err != nil && ctx.Err() == nil {
					d.screen.say("volume %s: %v", v.name, err)
				}
			}
		}
	}()
	return func() error {
		cancel()
		<-done
		return nil
	}, nil
}

// update writes the object's keys as files, if any has changed: a new
// directory, to which the link ..data is then moved, so that readers see all
// old or all new files.
func (v *volume) update(ctx context.Context, reader client.Client) error {
	key := client.ObjectKey{Namespace: namespace, Name: v.name}
	if err := reader.Get(ctx, key, v.object); err != nil {
		return err
	}
	data, err := contents(v.object)
	if err != nil {
		return err
	}
	if v.current != nil && same(v.current, data) {
		return nil
	}
	fresh := filepath.Join(v.dir, fmt.Sprintf("..%d", time.Now().UnixNano()))
	if err := os.MkdirAll(fresh, 0o755); err != nil {
		return err
	}
	for name, text := range data {
		if err := os.WriteFile(filepath.Join(fresh, name), text, 0o400); err != nil {
			return err
		}
		link := filepath.Join(v.dir, name)
		if err := os.Symlink(filepath.Join("..data", name), link); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	link, next := filepath.Join(v.dir, "..data"), filepath.Join(v.dir, "..data_tmp")
	old, _ := os.Readlink(link) // none the first time
	if err := os.Symlink(filepath.Base(fresh), next); err != nil {
		return err
	}
	if err := os.Rename(next, link); err != nil {
		return err
	}
	v.current = data
	if old == "" {
		return nil
	}
	return os.RemoveAll(filepath.Join(v.dir, old))
}

func contents(object client.Object) (map[string][]byte, error) {
	switch object := object.(type) {
	case *corev1.ConfigMap:
		data := map[string][]byte{}
		for name, text := range object.Data {
			data[name] = []byte(text)
		}
		return data, nil
	case *corev1.Secret:
		return object.Data, nil
	default:
		return nil, fmt.Errorf("a %T is no volume", object)
	}
}

func same(a, b map[string][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for name, text := range a {
		other, ok := b[name]
		if !ok || !slices.Equal(text, other) {
			return false
		}
	}
	return true
}
