// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package v1alpha1

import "k8s.io/apimachinery/pkg/api/resource"

// Canary says whether a probe includes a tiny build on the builder.
//
// +kubebuilder:validation:Enum=Disabled;Enabled
type Canary string

const (
	// CanaryDisabled probes without building.
	CanaryDisabled Canary = "Disabled"
	// CanaryEnabled builds one tiny derivation for each system.
	CanaryEnabled Canary = "Enabled"
)

// KeptConnection says whether the operator keeps a connection to each machine.
//
// +kubebuilder:validation:Enum=Disabled;Enabled
type KeptConnection string

const (
	// KeptConnectionDisabled connects for each probe alone.
	KeptConnectionDisabled KeptConnection = "Disabled"
	// KeptConnectionEnabled keeps one idle connection between probes.
	KeptConnectionEnabled KeptConnection = "Enabled"
)

// Probe says how often and how patiently machines are checked.
//
// +kubebuilder:validation:XValidation:rule="self.timeoutSeconds <= self.intervalSeconds",message="timeoutSeconds must not be more than intervalSeconds (10 and 30 when absent)"
type Probe struct {
	// intervalSeconds is the time between two probes of a machine, 5 to 3600
	// seconds, 30 when absent.
	//
	// +optional
	// +kubebuilder:default=30
	// +kubebuilder:validation:Minimum=5
	// +kubebuilder:validation:Maximum=3600
	IntervalSeconds int32 `json:"intervalSeconds,omitempty"`

	// timeoutSeconds bounds every step of a probe, 1 to 300 seconds, 10 when
	// absent, and not more than intervalSeconds.
	//
	// +optional
	// +kubebuilder:default=10
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=300
	TimeoutSeconds int32 `json:"timeoutSeconds,omitempty"`

	// failureThreshold is how many probes in a row have to fail before a
	// machine that was healthy is taken out of use, 1 to 20, 3 when absent.
	// A changed host key or a refused login takes it out at once.
	//
	// +optional
	// +kubebuilder:default=3
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=20
	FailureThreshold int32 `json:"failureThreshold,omitempty"`

	// canary says whether one tiny derivation is built for each system, at the
	// first probe, after changes and failures, and else once an hour: Disabled
	// (the default) or Enabled. A system for which that fails is taken out of use.
	//
	// +optional
	// +kubebuilder:default=Disabled
	Canary Canary `json:"canary,omitempty"`

	// keptConnection says whether the operator keeps one idle SSH connection to
	// each machine between probes: Enabled (the default) or Disabled. With it, a
	// machine that goes away is out of use within seconds instead of after
	// failureThreshold probes.
	//
	// +optional
	// +kubebuilder:default=Enabled
	KeptConnection KeptConnection `json:"keptConnection,omitempty"`
}

// Thresholds say how full, busy or wrong a machine may be and still be used. They
// are looked at with each probe, where the machine allows running df and reading
// /proc; what cannot be read takes nothing out of use. A machine that is out of use
// is used again once it is better than the threshold by a fifth.
type Thresholds struct {
	// minFreeSpace is how much room the file system of the machine's Nix store
	// must have, 1Gi when absent. 0 turns the check off.
	//
	// +optional
	// +kubebuilder:default="1Gi"
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? self >= 0 : isQuantity(self) && quantity(self).compareTo(quantity('0')) >= 0",message="must be a number of bytes that is not negative, such as 20Gi; 0 turns the check off"
	MinFreeSpace *resource.Quantity `json:"minFreeSpace,omitempty"`

	// maxLoadPercent is the most that the load average of the last minute may be,
	// in percent of the machine's processors: 200 is two processes that want to
	// run on each. Not looked at when absent.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100000
	MaxLoadPercent int32 `json:"maxLoadPercent,omitempty"`

	// maxCPUPressurePercent is the most of the last minute, in percent, in which
	// some process may have waited for a processor, as Linux tells in
	// /proc/pressure/cpu. Not looked at when absent.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	MaxCPUPressurePercent int32 `json:"maxCPUPressurePercent,omitempty"`

	// maxMemoryPressurePercent is the same for memory.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	MaxMemoryPressurePercent int32 `json:"maxMemoryPressurePercent,omitempty"`

	// maxIOPressurePercent is the same for disks.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	MaxIOPressurePercent int32 `json:"maxIOPressurePercent,omitempty"`

	// maxClockSkewSeconds is how far the machine's clock may be from the
	// operator's, 300 when absent. A clock further off is reported in condition
	// MachineFit and leaves the machine in use: it may be the operator's that is
	// wrong.
	//
	// +optional
	// +kubebuilder:default=300
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=315360000
	MaxClockSkewSeconds int32 `json:"maxClockSkewSeconds,omitempty"`
}
