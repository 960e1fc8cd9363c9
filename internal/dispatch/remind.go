// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"fmt"
	"sync"
	"time"
)

// reminder is how often a user is told what a build waits for besides a slot.
const reminder = 30 * time.Second

// doing tells the user now and then, from the first reminder on, what a builder is
// about, until done is called. The text completes "builder mac/mac-2 ".
func (s *supplier) doing(builder, text string) (done func()) {
	say, began := s.say, time.Now()
	stop := make(chan struct{})
	go func() {
		ticker := time.NewTicker(reminder)
		defer ticker.Stop()
		for {
			select {
			case <-stop:
				return
			case now := <-ticker.C:
				// Late lines are dropped; a client that is gone is noticed by others.
				if say(fmt.Sprintf("builder %s %s, for %v now", builder, text, now.Sub(began).Round(time.Second))) != nil {
					return
				}
			}
		}
	}()
	return sync.OnceFunc(func() { close(stop) })
}
