// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
)

// plugin is the command-line tool, which has to say the same as the conditions.
const plugin = "kubectl-nixbuilder"

// nowhere as a cause's fromHere says that the tool cannot find it out without a cluster.
const nowhere = "-"

// doctorReport is the part of the tool's JSON that is looked at.
type doctorReport struct {
	Builders []struct {
		Finding  string       `json:"finding"`
		Problem  string       `json:"problem"`
		Steps    []doctorStep `json:"steps"`
		Machines []struct {
			Name    string       `json:"name"`
			Problem string       `json:"problem"`
			Steps   []doctorStep `json:"steps"`
			Cordon  *struct {
				Reason string `json:"reason"`
			} `json:"cordon"`
			File *struct {
				Listed bool `json:"listed"`
			} `json:"machinesFile"`
		} `json:"machines"`
	} `json:"builders"`
}

type doctorStep struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// step finds what the tool says of a condition.
func (r *doctorReport) step(condition string) (doctorStep, bool) {
	for _, builder := range r.Builders {
		all := builder.Steps
		for _, machine := range builder.Machines {
			all = append(all, machine.Steps...)
			if condition == v1alpha1.ConditionCordoned && machine.Cordon != nil {
				return doctorStep{Status: "True", Reason: v1alpha1.ReasonCordoned, Message: "every endpoint: " + machine.Cordon.Reason}, true
			}
		}
		for _, step := range all {
			if step.Type == condition {
				return step, true
			}
		}
	}
	return doctorStep{}, false
}

// consultDoctor has the tool examine the patient: by asking the operator, and from
// here. Both have to name the same cause as the condition.
func (s *site) consultDoctor(p *patient, c cause, got finding) {
	p.Helper()
	want := c.want.withDefaults()
	if want.condition == v1alpha1.ConditionReady {
		return // a summary, no step
	}
	report := p.doctor(want, patientName, "-n", p.namespace)
	step, _ := report.step(want.condition)
	if step.Status != string(want.status) || step.Reason != want.reason || step.Message != got.message {
		p.Errorf("doctor says of %s: %+v, not %s %s: %s", want.condition, step, want.status, want.reason, got.message)
	}
	if c.fromHere == nowhere || !slices.Contains(fromHereConditions(), want.condition) {
		return
	}
	reason := want.reason
	if c.fromHere != "" {
		reason = c.fromHere
	}
	here, ok := p.fromHere()
	if !ok {
		return
	}
	report = p.doctor(want, here...)
	if step, _ := report.step(want.condition); step.Status != string(want.status) || step.Reason != reason {
		p.Errorf("doctor says from here of %s: %+v, not %s %s", want.condition, step, want.status, reason)
	}
}

// fromHereConditions are those that the tool finds out without a cluster.
func fromHereConditions() []string {
	return []string{
		v1alpha1.ConditionReachable, v1alpha1.ConditionHostKeyVerified, v1alpha1.ConditionAuthenticated,
		v1alpha1.ConditionNixAvailable, v1alpha1.ConditionTrusted,
	}
}

// fromHere describes the patient on a command line, which has no words for jump hosts.
func (p *patient) fromHere() (args []string, ok bool) {
	p.Helper()
	var object v1alpha1.NixBuilder
	p.must(p.site.Get(p.Context(), p.key(), &object))
	if object.Spec.ProxyJump != nil {
		return nil, false
	}
	endpoint := object.Spec.Endpoints[0]
	args = []string{
		"--uri", fmt.Sprintf("ssh-ng://%s@%s:%d", object.Spec.User, endpoint.Host, endpoint.Port),
		"--identity", p.site.lab.ClientKeyFile(), "--step-timeout", fmt.Sprintf("%ds", object.Spec.Probe.TimeoutSeconds),
	}
	keys := endpoint.HostKeys
	if status := object.Status.Endpoint(endpoint.Name); len(keys) == 0 && status != nil {
		keys = []string{status.HostKey}
	}
	for _, key := range keys {
		args = append(args, "--host-key", key)
	}
	if object.Spec.RemoteProgram != "" {
		args = append(args, "--remote-program", object.Spec.RemoteProgram)
	}
	return args, true
}

// doctor runs the tool and returns what it says. Its exit status says whether anything
// is wrong.
func (p *patient) doctor(want diagnosis, args ...string) *doctorReport {
	p.Helper()
	config := filepath.Join(p.dir, "kubeconfig")
	p.must(p.site.environment.WriteKubeconfig(config))
	command := exec.CommandContext(p.Context(), filepath.Join(os.Getenv(programsVariable), plugin), append([]string{"doctor", "-o", "json"}, args...)...)
	// A home without keys and known hosts.
	command.Env = append(os.Environ(), "KUBECONFIG="+config, "HOME="+p.dir)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	err := command.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		p.Fatal(err)
	}
	var report doctorReport
	if err := json.Unmarshal(stdout.Bytes(), &report); err != nil {
		p.Fatalf("doctor %s: %v\n%s%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	if wrong := want.status == metav1.ConditionFalse; (err != nil) != wrong {
		p.Errorf("doctor %s ends with %v\n%s", strings.Join(args, " "), err, stdout.String())
	}
	return &report
}
