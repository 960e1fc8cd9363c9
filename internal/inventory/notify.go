// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package inventory

import (
	"context"
	"path/filepath"
	"strings"
	"sync"

	"github.com/fsnotify/fsnotify"
)

// notifications turns what the kernel tells about directories into one signal
// that some watched file may have changed. It never looks at a file itself.
type notifications struct {
	watcher *fsnotify.Watcher
	changes chan<- struct{} // with room for one

	mu    sync.Mutex
	names map[string]bool // cleaned paths of the files
}

// watch makes changes of the files known from now on. Directories are
// watched, not files, because a file that is replaced is another file. One
// that is not there is tried again with the next call; see WatchOptions.Poll.
func (n *notifications) watch(paths []string) {
	names := make(map[string]bool, len(paths))
	for _, path := range paths {
		path = filepath.Clean(path)
		names[path] = true
		_ = n.watcher.Add(filepath.Dir(path))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.names = names
}

// run ends, and closes the watcher, when ctx does.
func (n *notifications) run(ctx context.Context) {
	defer n.watcher.Close()
	for {
		select {
		case <-ctx.Done():
			return
		case event, ok := <-n.watcher.Events:
			if !ok {
				return
			}
			if n.concerns(event) {
				n.signal()
			}
		case _, ok := <-n.watcher.Errors:
			if !ok {
				return
			}
			// Events were lost, as when too many came at once.
			n.signal()
		}
	}
}

// concerns reports whether the event may be about the content of a file: it
// names one, or a link that leads to it in a ConfigMap's directory.
func (n *notifications) concerns(event fsnotify.Event) bool {
	if event.Op == fsnotify.Chmod {
		return false
	}
	if strings.HasPrefix(filepath.Base(event.Name), "..") {
		return true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.names[filepath.Clean(event.Name)]
}

func (n *notifications) signal() {
	select {
	case n.changes <- struct{}{}:
	default: // one signal is waiting already
	}
}
