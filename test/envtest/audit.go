// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package envtest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// auditPolicy logs who did what to which object, once per request and without
// bodies: Secrets pass through here too.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
- level: Metadata
`

// Write is a request that asked the API server to change something, granted
// or not. Reviews and token requests are among them: they are created, though
// not stored.
type Write struct {
	// Time is when the request arrived.
	Time time.Time
	// User is who sent it, such as "system:serviceaccount:default:operator".
	User string
	// Verb is create, update, patch, delete or deletecollection.
	Verb string
	// Resource is plural, with the subresource: "nixbuilders/status".
	Resource string
	// Namespace and Name are empty where the request named none.
	Namespace, Name string
	// Code is the HTTP status of the answer.
	Code int
}

// WriteKey is what [CountWrites] counts by.
type WriteKey struct {
	User, Resource string
}

// CountWrites counts the writes that arrived at or after from and before to.
func CountWrites(writes []Write, from, to time.Time) map[WriteKey]int {
	counts := map[WriteKey]int{}
	for _, write := range writes {
		if !write.Time.Before(from) && write.Time.Before(to) {
			counts[WriteKey{User: write.User, Resource: write.Resource}]++
		}
	}
	return counts
}

// Writes reads the audit log up to now. The server writes an entry before its
// client has the answer.
func (e *Environment) Writes() ([]Write, error) {
	if e.auditLog == "" {
		return nil, errors.New("this environment has no audit log: set Options.AuditLog")
	}
	file, err := os.Open(e.auditLog)
	if err != nil {
		return nil, fmt.Errorf("read audit log: %w", err)
	}
	defer file.Close()
	return ReadWrites(file)
}

// auditEvent is the part of audit.k8s.io/v1 Event that a Write needs.
type auditEvent struct {
	Verb string `json:"verb"`
	User struct {
		Username string `json:"username"`
	} `json:"user"`
	ObjectRef struct {
		Resource    string `json:"resource"`
		Subresource string `json:"subresource"`
		Namespace   string `json:"namespace"`
		Name        string `json:"name"`
	} `json:"objectRef"`
	ResponseStatus struct {
		Code int `json:"code"`
	} `json:"responseStatus"`
	RequestReceivedTimestamp time.Time `json:"requestReceivedTimestamp"`
}

// ReadWrites returns the write requests of an audit log, in its order. A last
// line without its end is still being written and left out.
func ReadWrites(r io.Reader) ([]Write, error) {
	reader := bufio.NewReader(r)
	var writes []Write
	for number := 1; ; number++ {
		line, err := reader.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return writes, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read audit log: %w", err)
		}
		var event auditEvent
		if err := json.Unmarshal(line, &event); err != nil {
			return nil, fmt.Errorf("audit log, line %d: %w", number, err)
		}
		switch event.Verb {
		case "create", "update", "patch", "delete", "deletecollection":
			writes = append(writes, event.write())
		}
	}
}

func (e auditEvent) write() Write {
	resource := e.ObjectRef.Resource
	if e.ObjectRef.Subresource != "" {
		resource += "/" + e.ObjectRef.Subresource
	}
	return Write{
		Time:      e.RequestReceivedTimestamp,
		User:      e.User.Username,
		Verb:      e.Verb,
		Resource:  resource,
		Namespace: e.ObjectRef.Namespace,
		Name:      e.ObjectRef.Name,
		Code:      e.ResponseStatus.Code,
	}
}
