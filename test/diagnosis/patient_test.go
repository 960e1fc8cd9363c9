// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/controllers/machines"
	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/test/builders"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// Names of what every patient has.
const (
	patientName     = "linux"
	patientEndpoint = "linux-1"
	spareName       = "spare"
	// patientTimeout is the step timeout of patients, in seconds.
	patientTimeout = 4
)

// patient is a builder that gets broken, declared in a namespace of its own next to
// another builder that stays well and serves the same.
type patient struct {
	*testing.T
	site *site
	*nixlab.Builder
	namespace string
	host      string // in spec
	dir       string // for files of commands
	requests  int
	// respec changes the spec that it is declared with; prepare may set it.
	respec func(*v1alpha1.NixBuilderSpec)
}

// startSpare starts the machine that stays well in every namespace.
func (s *site) startSpare(t *testing.T) {
	t.Helper()
	s.spare = s.newBuilder(t, nixlab.BuilderOptions{Name: "spare"})
}

// admit starts the machine of a cause and declares it.
func (s *site) admit(t *testing.T, c cause, version nixlab.Version) *patient {
	t.Helper()
	name := c.name + "-" + strings.ReplaceAll(string(version), ".", "")
	// Refused logins are looked at again and again here, which sshd would punish.
	opts := nixlab.BuilderOptions{Name: name, Version: version}
	if version != nixlab.Nix28 { // its sshd does not know that yet
		opts.SSHDConfig = "PerSourcePenalties no"
	}
	if c.machine != nil {
		c.machine(&opts)
	}
	secret, err := os.ReadFile(s.lab.ClientKeyFile())
	if err != nil {
		t.Fatal(err)
	}
	p := &patient{T: t, site: s, namespace: name, dir: t.TempDir(), respec: c.spec}
	p.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	p.create(keySecret(name, secret))
	p.addSecret(spareName, secret)
	p.create(p.object(spareName, v1alpha1.Endpoint{
		Name: "spare-1", Host: s.spare.IP(), Port: int32(s.spare.Port()), HostKeys: []string{s.spare.HostKey()},
	}, func(spec *v1alpha1.NixBuilderSpec) {
		spec.Probe.IntervalSeconds = 3600
		spec.Credentials.SecretRefs[0].Name = spareName
	}))
	p.Builder = s.newBuilder(t, opts)
	p.host = p.IP()
	if c.prepare != nil {
		c.prepare(p)
	}
	p.create(p.object(patientName, v1alpha1.Endpoint{
		Name: patientEndpoint, Host: p.host, Port: int32(p.Port()), HostKeys: []string{p.HostKey()},
	}, p.respec))
	t.Cleanup(p.discharge)
	return p
}

// discharge takes the builders away, which the operator would go on probing.
func (p *patient) discharge() {
	p.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := p.site.DeleteAllOf(ctx, &v1alpha1.NixBuilder{}, client.InNamespace(p.namespace)); err != nil {
		p.Error(err)
	}
}

// keySecret is a Secret that is right in every respect.
func keySecret(namespace string, privateKey []byte) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: builders.DefaultSecret, Labels: map[string]string{v1alpha1.CredentialLabel: "true"},
		},
		Type: corev1.SecretTypeSSHAuth, Data: map[string][]byte{corev1.SSHAuthPrivateKey: privateKey},
	}
}

// addSecret declares another Secret that is right in every respect.
func (p *patient) addSecret(name string, privateKey []byte) {
	p.Helper()
	secret := keySecret(p.namespace, privateKey)
	secret.Name = name
	p.create(secret)
}

func (p *patient) object(name string, endpoint v1alpha1.Endpoint, change func(*v1alpha1.NixBuilderSpec)) *v1alpha1.NixBuilder {
	return builders.MakeNixBuilder(name).Namespace(p.namespace).Systems(nixlab.System()).EndpointWith(endpoint).
		Change(func(n *v1alpha1.NixBuilder) {
			n.Spec.User = nixlab.TrustedUser
			n.Spec.Probe.IntervalSeconds, n.Spec.Probe.TimeoutSeconds, n.Spec.Probe.FailureThreshold = 5, patientTimeout, 1
			if change != nil {
				change(&n.Spec)
			}
		}).Obj()
}

func (p *patient) create(object client.Object) {
	p.Helper()
	if err := p.site.Create(p.Context(), object); err != nil {
		p.Fatal(err)
	}
}

func (p *patient) key() client.ObjectKey {
	return client.ObjectKey{Namespace: p.namespace, Name: patientName}
}

// run runs a script on the machine as root and returns what it prints.
func (p *patient) run(script string) string {
	p.Helper()
	return run(p.T, p.Builder, script)
}

// changeSpec changes the spec.
func (p *patient) changeSpec(change func(*v1alpha1.NixBuilderSpec)) {
	p.Helper()
	p.site.change(p.T, p.key(), change)
}

// changeSecret changes the Secret.
func (p *patient) changeSecret(change func(*corev1.Secret)) {
	p.Helper()
	secret := &corev1.Secret{}
	if err := p.site.Get(p.Context(), p.secretKey(), secret); err != nil {
		p.Fatal(err)
	}
	patch := client.MergeFrom(secret.DeepCopy())
	change(secret)
	if err := p.site.Patch(p.Context(), secret, patch); err != nil {
		p.Fatal(err)
	}
}

// dropSecret deletes the Secret and returns what it held.
func (p *patient) dropSecret() []byte {
	p.Helper()
	secret := &corev1.Secret{}
	if err := p.site.Get(p.Context(), p.secretKey(), secret); err != nil {
		p.Fatal(err)
	}
	if err := p.site.Delete(p.Context(), secret); err != nil {
		p.Fatal(err)
	}
	return secret.Data[corev1.SSHAuthPrivateKey]
}

func (p *patient) secretKey() client.ObjectKey {
	return client.ObjectKey{Namespace: p.namespace, Name: builders.DefaultSecret}
}

// request asks the operator to probe now.
func (p *patient) request() {
	p.Helper()
	p.requests++
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:"%d"}}}`, v1alpha1.ProbeRequestAnnotation, p.requests)
	object := p.object(patientName, v1alpha1.Endpoint{}, nil)
	if err := p.site.Patch(p.Context(), object, client.RawPatch("application/merge-patch+json", []byte(patch))); err != nil {
		p.Fatal(err)
	}
}

// shell runs a command that a message prints, on the machine of whoever reads it:
// kubectl is there, and may do everything. It returns what was printed.
func (p *patient) shell(command string) string {
	p.Helper()
	config := filepath.Join(p.dir, "kubeconfig")
	if err := p.site.environment.WriteKubeconfig(config); err != nil {
		p.Fatal(err)
	}
	c := exec.CommandContext(p.Context(), "sh", "-ec", command)
	c.Dir = p.dir
	c.Env = append(os.Environ(), "KUBECONFIG="+config,
		"PATH="+filepath.Dir(p.site.environment.Kubectl())+":"+os.Getenv(programsVariable)+":"+os.Getenv("PATH"))
	output, err := c.CombinedOutput()
	if err != nil {
		p.Fatalf("%s: %v\n%s", command, err, output)
	}
	return string(output)
}

// sshd starts the machine's SSH server anew with other settings before its own,
// where the first one counts; with none it is as it was made.
func (p *patient) sshd(settings ...string) {
	p.Helper()
	p.run(fmt.Sprintf(`cd /etc/ssh
[ -e made ] || cp lab_sshd_config made
printf '%%s\n' %s | cat - made >lab_sshd_config
%s`, quoteAll(settings), reloadSSHD))
}

// reloadSSHD has sshd read its files again, and waits until it listens.
const reloadSSHD = `
/usr/sbin/sshd -t -f /etc/ssh/lab_sshd_config
before=$(grep -c '^Server listening' /var/log/lab/sshd.log)
kill -HUP $(cat /run/sshd.pid)` + awaitSSHD

func quoteAll(words []string) string {
	var quoted []string
	for _, word := range words {
		quoted = append(quoted, "'"+strings.ReplaceAll(word, "'", `'\''`)+"'")
	}
	return strings.Join(quoted, " ")
}

// vitals is what people and clients see of a patient.
type vitals struct {
	condition metav1.Condition
	ready     metav1.Condition
	endpoint  v1alpha1.EndpointStatus
	healthy   string
	listed    bool // in the machines file
	inventory inventory.State
}

func (p *patient) look(condition string) vitals {
	p.Helper()
	var object v1alpha1.NixBuilder
	if err := p.site.Get(p.Context(), p.key(), &object); err != nil {
		p.Fatal(err)
	}
	var file corev1.ConfigMap
	err := p.site.Get(p.Context(), client.ObjectKey{Namespace: p.namespace, Name: machines.ConfigMapName}, &file)
	if client.IgnoreNotFound(err) != nil {
		p.Fatal(err)
	}
	v := vitals{healthy: object.Status.Healthy}
	if c := object.Status.Condition(condition); c != nil {
		v.condition = *c
	}
	if c := object.Status.Condition(v1alpha1.ConditionReady); c != nil {
		v.ready = *c
	}
	if e := object.Status.Endpoint(patientEndpoint); e != nil {
		v.endpoint = *e
	}
	lines := 0
	for line := range strings.Lines(file.Data[machines.KeyMachines]) {
		if strings.HasPrefix(line, "ssh-ng://") {
			lines++
		}
	}
	v.listed = lines == 2
	var document inventory.Document
	if text := file.Data[machines.KeyBuilders]; text != "" {
		if document, err = inventory.Decode([]byte(text)); err != nil {
			p.Fatal(err)
		}
	}
	for _, e := range document.Builders {
		if e.Builder == patientName {
			v.inventory = e.State
		}
	}
	return v
}

// awaitWell waits until the builder is Ready and listed.
func (p *patient) awaitWell() {
	p.Helper()
	p.await("Ready and listed", v1alpha1.ConditionReady, func(v vitals) bool {
		return v.ready.Status == metav1.ConditionTrue && v.ready.Reason == v1alpha1.ReasonAllHealthy && v.listed &&
			v.endpoint.State == v1alpha1.EndpointHealthy && v.endpoint.FailedCondition == "" && v.inventory == inventory.StateHealthy
	})
}

// awaitIll waits until the builder is as wanted, and returns what is said of it.
func (p *patient) awaitIll(want diagnosis) finding {
	p.Helper()
	v := p.await(fmt.Sprintf("%s %s %s, %s, listed: %v", want.condition, want.status, want.reason, want.state, want.listed), want.condition, func(v vitals) bool {
		ready := v.ready.Status == metav1.ConditionFalse && v.ready.Reason == want.reason
		if want.ready {
			ready = v.ready.Status == metav1.ConditionTrue
		}
		return v.condition.Status == want.status && v.condition.Reason == want.reason && ready &&
			v.endpoint.State == want.state && v.listed == want.listed
	})
	for _, word := range want.words {
		if !strings.Contains(v.condition.Message, word) {
			p.Errorf("the message lacks %q: %s", word, v.condition.Message)
		}
	}
	if !want.quiet {
		p.awaitWarning(want.reason)
	}
	p.Log(v.condition.Message)
	return finding{
		message: v.condition.Message, healthy: v.healthy, listed: v.listed, inUse: v.endpoint.InUse(),
		ready: fmt.Sprintf("%s %s", v.ready.Status, v.ready.Reason), page: p.withoutParticulars(v.condition.Message),
	}
}

func (p *patient) await(what, condition string, fits func(vitals) bool) vitals {
	p.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(polling) {
		v := p.look(condition)
		if fits(v) {
			return v
		}
		if time.Now().After(deadline) {
			p.Fatalf("not %s:\ncondition %+v\nready %+v\nendpoint %+v\nlisted %v, inventory %s", what, v.condition, v.ready, v.endpoint, v.listed, v.inventory)
		}
	}
}

// awaitWarning waits for a Warning event about the builder. Events are written aside.
func (p *patient) awaitWarning(reason string) {
	p.Helper()
	var list eventsv1.EventList
	for deadline := time.Now().Add(patience); ; time.Sleep(polling) {
		if err := p.site.List(p.Context(), &list, client.InNamespace(p.namespace)); err != nil {
			p.Fatal(err)
		}
		for _, event := range list.Items {
			if event.Type == corev1.EventTypeWarning && event.Reason == reason && event.Regarding.Name == patientName {
				return
			}
		}
		if time.Now().After(deadline) {
			p.Fatalf("no Warning event %s among %d", reason, len(list.Items))
		}
	}
}
