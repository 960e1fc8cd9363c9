// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// EndpointState says whether builds are placed on a machine.
//
// +kubebuilder:validation:Enum=Unknown;Healthy;Suspect;Unhealthy
type EndpointState string

const (
	// EndpointUnknown is a machine that was not probed yet.
	EndpointUnknown EndpointState = "Unknown"
	// EndpointHealthy is a machine whose last probe went through.
	EndpointHealthy EndpointState = "Healthy"
	// EndpointSuspect is a machine that was healthy and whose last probes failed,
	// but not yet as many in a row as failureThreshold. It is still used.
	EndpointSuspect EndpointState = "Suspect"
	// EndpointUnhealthy is a machine that is out of use until a probe goes
	// through.
	EndpointUnhealthy EndpointState = "Unhealthy"
)

// Limits of what status holds. The operator cuts what it learns to them, so
// that no builder can make a status unacceptable to the API server.
const (
	// MaxMessageLength is the most characters in a message about an endpoint.
	MaxMessageLength = 1024
	// MaxStatusSystems is the most systems kept of one endpoint.
	MaxStatusSystems = 64
	// MaxStatusFeatures is the most features kept of one endpoint.
	MaxStatusFeatures = 64
	// MaxHostKeyLength is the most characters in a host key line.
	MaxHostKeyLength = 2048
	// MaxTextLength is the most characters in other text, such as a version or
	// the name of a system or feature.
	MaxTextLength = 64
)

// NixBuilderStatus is what the operator has found. It changes on transitions
// only: heartbeats stay in the operator's memory and metrics.
type NixBuilderStatus struct {
	// conditions are Accepted, CredentialsValid, Reachable, HostKeyVerified,
	// Authenticated, NixAvailable, Trusted, MachineFit, SystemsVerified and Ready, and, only
	// while true, Cordoned. Each is True when it holds for every endpoint that
	// is not cordoned, else False with the first endpoint for which it does not
	// hold, or Unknown before that could be found out.
	//
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=16
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// observedGeneration is the generation of the spec that this status is about.
	//
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// totalEndpoints is the number of endpoints.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	TotalEndpoints int32 `json:"totalEndpoints"`

	// healthyEndpoints is the number of endpoints in state Healthy.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	HealthyEndpoints int32 `json:"healthyEndpoints"`

	// healthy is healthyEndpoints of totalEndpoints, for display: "2/3".
	//
	// +optional
	// +kubebuilder:validation:MaxLength=16
	Healthy string `json:"healthy,omitempty"`

	// cordoned is the number of cordoned endpoints of totalEndpoints, for display:
	// "1/3". Absent where none is.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=16
	Cordoned string `json:"cordoned,omitempty"`

	// systems are the systems of all endpoints, joined by commas for display.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Systems string `json:"systems,omitempty"`

	// jobs is the number of builds that all endpoints that are not cordoned run
	// at once.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	Jobs int32 `json:"jobs"`

	// nix are the versions of Nix on the endpoints, joined by commas for display.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Nix string `json:"nix,omitempty"`

	// endpoints is what is known of each machine.
	//
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=64
	Endpoints []EndpointStatus `json:"endpoints,omitempty"`

	// lastProbe is what the probe found that was asked for last by annotation
	// nixbuilder.io/probe-requested-at. Other probes leave it as it is.
	//
	// +optional
	LastProbe *LastProbe `json:"lastProbe,omitempty"`
}

// LastProbe is what a probe found that somebody asked for.
type LastProbe struct {
	// request is the value of the annotation that asked for it.
	//
	// +required
	// +kubebuilder:validation:MaxLength=64
	Request string `json:"request"`

	// completionTime is when the last of its steps ended.
	//
	// +required
	CompletionTime metav1.Time `json:"completionTime"`

	// steps are those that are about the whole object: Accepted and
	// CredentialsValid.
	//
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=4
	Steps []ProbedStep `json:"steps,omitempty"`

	// endpoints are the machines that were probed. There is none where steps rule
	// that out: the spec is not accepted, or no Secret can be used.
	//
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=64
	Endpoints []ProbedEndpoint `json:"endpoints,omitempty"`
}

// ProbedEndpoint is what a requested probe found at one machine.
type ProbedEndpoint struct {
	// name is the endpoint's name in spec.endpoints.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`

	// steps are what was looked at, in order. After one that failed the later ones
	// are Unknown.
	//
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=16
	Steps []ProbedStep `json:"steps,omitempty"`
}

// ProbedStep is what a requested probe found in one step.
type ProbedStep struct {
	// type is that of the condition that the step feeds.
	//
	// +required
	// +kubebuilder:validation:MaxLength=64
	Type string `json:"type"`

	// status is True, False or Unknown, as in the condition.
	//
	// +required
	Status metav1.ConditionStatus `json:"status"`

	// reason is why, in one word.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Reason string `json:"reason,omitempty"`

	// message is why and what to change, in a sentence.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Message string `json:"message,omitempty"`

	// durationMilliseconds is how long it took; absent where it was not reached.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	DurationMilliseconds int64 `json:"durationMilliseconds,omitempty"`
}

// EndpointStatus is what is known of one machine.
type EndpointStatus struct {
	// name is the endpoint's name in spec.endpoints.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`

	// address is the host and port that all this is about. Another one in the
	// spec means another machine, of which nothing is known yet.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=264
	Address string `json:"address,omitempty"`

	// state says whether builds are placed on it: Unknown (not probed yet),
	// Healthy, Suspect (its last probe failed; still used) or Unhealthy.
	//
	// +required
	State EndpointState `json:"state"`

	// reason is why it is in that state, in one word.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Reason string `json:"reason,omitempty"`

	// message is why it is in that state and what to change, in a sentence.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Message string `json:"message,omitempty"`

	// failedCondition is the type of the first condition that does not hold for
	// it, or, in state Healthy, that could not be verified: reason and message
	// are about that one. Absent where every condition holds.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=64
	FailedCondition string `json:"failedCondition,omitempty"`

	// nixVersion is the version that its nix-daemon program reports.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=64
	NixVersion string `json:"nixVersion,omitempty"`

	// protocolVersion is its version of the Nix worker protocol, such as "1.35".
	//
	// +optional
	// +kubebuilder:validation:MaxLength=64
	ProtocolVersion string `json:"protocolVersion,omitempty"`

	// systems are the systems that it is used for: those of the spec, else those
	// discovered, but for refutedSystems.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=64
	Systems []string `json:"systems,omitempty"`

	// refutedSystems are systems of the spec, or discovered, for which the machine
	// does not build.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=64
	RefutedSystems []string `json:"refutedSystems,omitempty"`

	// features are the system features that it is used for besides mandatory
	// ones: those of the spec, else those discovered, but for refutedFeatures.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=64
	Features []string `json:"features,omitempty"`

	// refutedFeatures are features of the spec, or discovered, that the machine's
	// daemon says it lacks. It is not used for them.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=64
	RefutedFeatures []string `json:"refutedFeatures,omitempty"`

	// cores is the number of processors that a build there may use, as its
	// configuration says. 0 where that is not known.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	Cores int32 `json:"cores,omitempty"`

	// maxJobs is the number of builds that it runs at once: the endpoint's, else
	// the spec's, else the one discovered, else 1. 0 before that is known.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	MaxJobs int32 `json:"maxJobs,omitempty"`

	// hostKey is the host key that it was verified by, as one public key line.
	// Under policy TrustOnFirstUse it is the pin: no other key is accepted.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=2048
	HostKey string `json:"hostKey,omitempty"`

	// credential is the name of the Secret whose key the machine accepted.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Credential string `json:"credential,omitempty"`

	// cordon is the one that takes it out of use now, its own or that of the whole
	// object. Absent where there is none, or where it is over.
	//
	// +optional
	Cordon *Cordon `json:"cordon,omitempty"`

	// lastTransitionTime is when state changed last.
	//
	// +optional
	LastTransitionTime *metav1.Time `json:"lastTransitionTime,omitempty"`

	// lastHealthyTime is when a probe went through last, absent in state Healthy
	// and where none ever did.
	//
	// +optional
	LastHealthyTime *metav1.Time `json:"lastHealthyTime,omitempty"`
}
