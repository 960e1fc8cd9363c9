// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// cause is one way in which a builder that was Ready cannot be used any more, and the
// way back. Its test makes the builder Ready, breaks exactly one thing, reads back what
// the API server has in the end, does what the message says, and waits until the builder
// is Ready and listed again. What it read makes its part of docs/troubleshooting.md.
type cause struct {
	// name is that of the subtest: a DNS label, at most 30 characters.
	name string
	// title is the heading on the page, such as "The host name does not exist".
	title string
	// means says in a sentence or two what is the case. May be empty.
	means string
	// nixSays is what Nix alone would have printed, where that is known.
	nixSays string
	// mend says in a sentence or two what to do, for people.
	mend string
	// versions are those of Nix that it is tried with; nil is the newest alone.
	versions []nixlab.Version
	// machine changes how the machine is made, spec how it is declared; both while
	// all is well still. May be nil.
	machine func(*nixlab.BuilderOptions)
	spec    func(*v1alpha1.NixBuilderSpec)
	// prepare is what happens between the machine's start and its declaration.
	prepare func(*patient)
	// breaks breaks the one thing.
	breaks func(*patient)
	want   diagnosis
	// remedy does what the message says: on the machine, to the Secret or to the spec.
	// message is as the API server has it, for commands that can be run literally.
	remedy func(p *patient, message string)
	// fromHere is the reason that the command-line tool finds without a cluster, if that
	// is another one: it does not know what was there before. nowhere keeps it from trying.
	fromHere string
}

// diagnosis is what the API server has in the end of a broken builder.
type diagnosis struct {
	// condition is what does not hold; its status is False if empty.
	condition string
	status    metav1.ConditionStatus
	reason    string
	// words have to occur in its message.
	words []string
	// state of the endpoint; Unhealthy if empty.
	state v1alpha1.EndpointState
	// listed tells whether the builder keeps its line in the machines file, next to
	// that of another one.
	listed bool
	// ready tells whether the builder as a whole stays Ready; otherwise that is False
	// with the reason above.
	ready bool
	// quiet tells that there is no Warning event with the reason above.
	quiet bool
}

func (d diagnosis) withDefaults() diagnosis {
	if d.status == "" {
		d.status = metav1.ConditionFalse
	}
	if d.state == "" {
		d.state = v1alpha1.EndpointUnhealthy
	}
	return d
}

// causes are all of them, in the order of the conditions.
func causes() []cause {
	var all []cause
	for _, part := range [][]cause{specCauses(), secretCauses(), keyCauses(), networkCauses(), handshakeCauses(), hostKeyCauses(), hostCertificateCauses(), loginCauses(), sessionCauses(), nixCauses(), jumpCauses()} {
		all = append(all, part...)
	}
	return all
}

// Every cause is named, with a remedy that works, and docs/troubleshooting.md says so.
func TestCauses(t *testing.T) {
	s := startSite(t, &site{keeps: true})
	s.startSpare(t)
	book := newBook()
	t.Run("each", func(t *testing.T) {
		for _, c := range causes() {
			versions := c.versions
			if versions == nil {
				versions = []nixlab.Version{nixlab.Newest}
			}
			for _, version := range versions {
				book.expect(c, version)
				t.Run(c.name+"/"+string(version), func(t *testing.T) {
					t.Parallel()
					s.examine(t, c, version, book)
				})
			}
		}
	})
	if t.Failed() {
		return
	}
	if missing := book.missing(); len(missing) > 0 {
		t.Skipf("no look at %s: %d examinations are missing, such as %s", page, len(missing), missing[0])
	}
	comparePage(t, book)
}

// examine goes through the life of a patient.
func (s *site) examine(t *testing.T, c cause, version nixlab.Version, results *book) {
	t.Helper()
	p := s.admit(t, c, version)
	p.awaitWell()

	c.breaks(p)
	p.request()
	got := p.awaitIll(c.want.withDefaults())
	s.consultDoctor(p, c, got)

	c.remedy(p, got.message)
	p.request()
	p.awaitWell()
	results.add(c, version, got)
}

// finding is what was read of a broken builder.
type finding struct {
	message string // of the condition
	healthy string // column HEALTHY
	ready   string // columns READY and REASON
	listed  bool
	inUse   bool // by state of the endpoint
	// page is the message with what varies replaced.
	page string
}
