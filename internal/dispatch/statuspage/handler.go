// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package statuspage shows what a dispatcher does to people and scripts on the
// same machine: builders, running builds, waiting builds and why.
//
//	GET /             a page, drawn here: no script, nothing from elsewhere
//	GET /status.json  the same as a [Document]
//
// It changes nothing. It is meant for loopback: it names derivations, and asks
// nobody who they are. Requests that a browser makes for a page of somebody else's
// are refused by their Host header, so that no site can read it by pointing a name
// at loopback.
package statuspage

import (
	"bytes"
	"embed"
	"encoding/json"
	"html/template"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Bounds on what readers cost.
const (
	// freshness is how old the shown state may be: the scheduler and the fleet are
	// asked that often at most, however many look.
	freshness = 500 * time.Millisecond
	// maxRows bounds each table of the page. The JSON has all.
	maxRows = 200
	// refreshSeconds is how often the page reloads itself.
	refreshSeconds = 5
)

//go:embed page.html style.css icon.svg
var files embed.FS

// Options configure [New].
type Options struct {
	// Read returns the present state. It is not called concurrently.
	Read func() Document
}

// New returns the handler of the page. It is safe for concurrent use.
func New(opts Options) (http.Handler, error) {
	page, err := template.New("page.html").Funcs(functions).ParseFS(files, "page.html")
	if err != nil {
		return nil, err
	}
	s := &site{read: opts.Read, page: page}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.html)
	mux.HandleFunc("GET /status.json", s.json)
	for name, kind := range map[string]string{"style.css": "text/css; charset=utf-8", "icon.svg": "image/svg+xml"} {
		content, err := files.ReadFile(name)
		if err != nil {
			return nil, err
		}
		mux.HandleFunc("GET /"+name, func(w http.ResponseWriter, _ *http.Request) { write(w, kind, content) })
	}
	return guard(mux), nil
}

// site draws the page from the last state read.
type site struct {
	page *template.Template

	mu   sync.Mutex
	read func() Document
	last Document
	at   time.Time
}

// document returns the state, read again unless that was done a moment ago.
func (s *site) document() Document {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at.IsZero() || time.Since(s.at) >= freshness {
		s.last, s.at = complete(s.read()), time.Now()
	}
	return s.last
}

func (s *site) html(w http.ResponseWriter, r *http.Request) {
	v := newView(s.document(), r.URL.Query().Get("refresh") != "off")
	var page bytes.Buffer
	if err := s.page.Execute(&page, v); err != nil {
		http.Error(w, "the page could not be drawn: "+err.Error(), http.StatusInternalServerError)
		return
	}
	write(w, "text/html; charset=utf-8", page.Bytes())
}

func (s *site) json(w http.ResponseWriter, _ *http.Request) {
	text, err := json.MarshalIndent(s.document(), "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	write(w, "application/json", append(text, '\n'))
}

// write answers with content. An error is that of a reader who has left.
func write(w http.ResponseWriter, kind string, content []byte) {
	w.Header().Set("Content-Type", kind)
	_, _ = w.Write(content)
}

// guard refuses requests that were not meant for loopback, and tells browsers to
// load nothing that is not from here.
func guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("Cross-Origin-Resource-Policy", "same-origin")
		header.Set("Referrer-Policy", "no-referrer")
		header.Set("Cache-Control", "no-store")
		if !forLoopback(r.Host) {
			http.Error(w, "This page answers to localhost and loopback addresses only.", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// forLoopback reports whether a Host header names loopback, with any port: it may
// have been forwarded.
func forLoopback(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.TrimSuffix(strings.TrimPrefix(name, "["), "]")
	if strings.EqualFold(name, "localhost") {
		return true
	}
	ip := net.ParseIP(name)
	return ip != nil && ip.IsLoopback()
}

// complete replaces lists that are nil, which would be null in JSON.
func complete(d Document) Document {
	d.SchemaVersion = SchemaVersion
	fill(&d.Builders)
	fill(&d.Running)
	fill(&d.Waiting)
	for i := range d.Builders {
		b := &d.Builders[i]
		fill(&b.Systems)
		fill(&b.SupportedFeatures)
		fill(&b.MandatoryFeatures)
	}
	for _, builds := range [][]Build{d.Running, d.Waiting} {
		for i := range builds {
			fill(&builds[i].Features)
			fill(&builds[i].Lost)
		}
	}
	return d
}

func fill[T any](list *[]T) {
	if *list == nil {
		*list = []T{}
	}
}
