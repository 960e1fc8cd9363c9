// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// refusalAge is how long a jump host is taken to refuse a login that it has refused.
const refusalAge = 30 * time.Second

// refusals are the logins that jump hosts refused of late. Each endpoint behind one
// would find that out for itself, and OpenSSH (PerSourcePenalties) turns the operator's
// address away after a few of them, for users of the same jump host that are well, too.
type refusals struct {
	mu   sync.Mutex
	last map[loginID]refusal
}

// loginID tells logins apart by all that the jump host's answer depends on.
type loginID [sha256.Size]byte

type refusal struct {
	at  time.Time
	why *sshconn.Error // shared, not to be changed
}

// loginID of a target's jump host with the keys given.
func (j *Jump) loginID(keys signers) loginID {
	var text []byte
	add := func(field string) {
		text = append(binary.LittleEndian.AppendUint64(text, uint64(len(field))), field...)
	}
	// Host keys count: whom nobody trusts is not logged in to.
	for _, field := range slices.Concat([]string{j.Address(), j.User}, j.HostKeys, []string{""}, j.CertificateAuthorities, []string{""}) {
		add(field)
	}
	for _, key := range keys.list {
		add(string(key.PublicKey().Marshal()))
	}
	return sha256.Sum256(text)
}

// of returns how the jump host refused this login since then, or nil.
func (f *refusals) of(login loginID, since time.Time) *sshconn.Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if last, ok := f.last[login]; ok && !last.at.Before(since) {
		return last.why
	}
	return nil
}

// note remembers that the jump host refused a login, and drops what is too old to count.
func (f *refusals) note(login loginID, why *sshconn.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	for other, last := range f.last {
		if now.Sub(last.at) >= refusalAge {
			delete(f.last, other)
		}
	}
	if f.last == nil {
		f.last = map[loginID]refusal{}
	}
	f.last[login] = refusal{at: now, why: why}
}

// forget is for a login that was not refused.
func (f *refusals) forget(login loginID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.last, login)
}

// refusedBefore returns how the jump host refused this very login lately. A probe that
// people asked for takes over only what happened since, that of another endpoint: they
// may have put right what was wrong.
func (c *checker) refusedBefore(r *report) *sshconn.Error {
	if r.hop == nil {
		return nil
	}
	since := time.Now().Add(-refusalAge)
	if r.target.asked.After(since) {
		since = r.target.asked
	}
	return c.refusals.of(r.hop.login, since)
}
