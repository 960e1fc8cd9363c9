// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package layout

// Module is the path of the project's module. Rules name packages of the
// project relative to it.
const Module = "nixbuilder.io/nix-builder-operator"

// Rule restricts the imports of some packages, test files excepted.
type Rule struct {
	// Packages are patterns: a path, with "/..." all below it too, with "*" for
	// any one path element. So are those of the other fields.
	Packages []string
	// Allow lists all imports besides the standard library; nil allows any.
	Allow []string
	// Deny lists imports that are refused where they stand.
	Deny []string
	// Unreachable lists packages that may not even be linked in, by however
	// many imports.
	Unreachable []string
	// StandardOnly refuses to link in anything from outside the standard
	// library and the project.
	StandardOnly bool
	// Reason says why; it is part of every message.
	Reason string
}

var none = []string{}

// kubernetes is what the data path must do without.
var kubernetes = []string{"k8s.io/...", "sigs.k8s.io/controller-runtime/...", "api/...", "controllers/..."}

// Rules returns the project's import rules. Every package outside test and
// hack must be matched by a rule that says what it may import.
func Rules() []Rule {
	return []Rule{
		{
			Packages: []string{"api/..."},
			Allow:    []string{"k8s.io/api/...", "k8s.io/apimachinery/..."},
			Reason:   "programs that only use the API types must not pull in controllers or clients",
		},
		{
			Packages: []string{"internal/nix/wire", "internal/nix/storepath", "internal/nix/machines", "internal/connect", "internal/version"},
			Allow:    none,
			Reason:   "formats and protocols stand alone, so that anything may use them",
		},
		{
			Packages: []string{"internal/nix/nar"},
			Allow:    []string{"internal/nix/wire"},
			Reason:   "archives are made of the wire's primitives and nothing else",
		},
		{
			Packages: []string{"internal/nix/daemon/..."},
			Allow:    []string{"internal/nix/..."},
			Reason:   "the codec knows neither how a builder is reached nor who asks",
		},
		{
			Packages: []string{"internal/sshconn"},
			Allow:    []string{"golang.org/x/crypto/..."},
			Reason:   "connections carry bytes: neither Nix nor Kubernetes matters to them",
		},
		{
			Packages: []string{"internal/inventory"},
			Allow:    []string{"internal/nix/machines", "github.com/fsnotify/fsnotify"},
			Reason:   "operator and dispatcher share the document, not each other's libraries",
		},
		{
			Packages: []string{"internal/spool"},
			Allow:    []string{"internal/nix/..."},
			Reason:   "the spool stores paths, whoever brings or wants them",
		},
		{
			Packages:    []string{"internal/scheduler"},
			Allow:       none,
			Deny:        []string{"net/...", "os/..."},
			Unreachable: []string{"net"},
			Reason:      "placement is a function of its snapshot, without input or output",
		},
		{
			Packages:    []string{"internal/probe"},
			Allow:       []string{"internal/sshconn", "internal/nix/...", "golang.org/x/crypto/ssh/...", "golang.org/x/sync/...", "golang.org/x/time/..."},
			Unreachable: kubernetes,
			Reason:      "probing must be testable, and usable, without a cluster",
		},
		{
			Packages:    []string{"internal/dispatch/...", "cmd/nix-dispatcher/..."},
			Unreachable: kubernetes,
			Reason:      "the dispatcher runs without a cluster and must not be stopped by one",
		},
		{
			Packages:     []string{"cmd/nix-dispatch-connect/..."},
			Allow:        []string{"internal/connect", "internal/version"},
			StandardOnly: true,
			Reason:       "the helper runs in other people's containers and stays small",
		},
		{
			Packages: []string{"controllers/..."},
			Deny:     []string{"golang.org/x/crypto/...", "internal/sshconn", "internal/dispatch/...", "internal/spool"},
			Reason:   "controllers never dial: the prober does, and builds never pass through the operator",
		},
		{
			Packages: []string{"controllers/*/..."},
			Deny:     []string{"controllers"},
			Reason:   "setup knows the controllers, not the other way round",
		},
		{
			Packages: []string{"internal/..."},
			Deny:     []string{"controllers/...", "cmd/..."},
			Reason:   "internal packages are the lower layer",
		},
		{
			Packages: []string{"cmd/manager/..."},
			Deny:     []string{"internal/dispatch/...", "internal/spool"},
			Reason:   "builds never pass through the operator",
		},
		{
			Packages: []string{"cmd/kubectl-nixbuilder/..."},
			Deny:     []string{"internal/dispatch/...", "internal/spool", "cmd/manager/..."},
			Reason:   "the plugin explains by the operator's rules and probes with its prober; it carries no builds",
		},
		{
			Packages: []string{"api/...", "cmd/...", "controllers/...", "internal/..."},
			Deny:     []string{"test/...", "hack/..."},
			Reason:   "what tests are made of must not ship",
		},
	}
}
