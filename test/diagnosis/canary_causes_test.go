// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	"k8s.io/apimachinery/pkg/api/resource"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// canaryCauses are builders that pass every step, and cannot build.
func canaryCauses() []cause {
	return []cause{
		cannotBuild(cause{
			name: "no-group", title: "There is no group of build users",
			mend:   "Make the group that `build-users-group` names, with users as its members (NixOS and the installers do), and restart nix-daemon.",
			breaks: func(p *patient) { p.nixConf("build-users-group = makers") },
			want:   diagnosis{words: []string{"'makers'", "make the group of build-users-group"}},
			remedy: func(p *patient, _ string) {
				p.run("echo makers:x:7777:nixbld1,nixbld2 >>/etc/group")
				p.restartDaemon()
			},
		}),
		cannotBuild(cause{
			name: "no-users", title: "The group of build users is empty",
			mend:    "Make users who are members of the group that `build-users-group` names, and restart nix-daemon.",
			prepare: func(p *patient) { p.nixConf("build-users-group = nixbld") },
			breaks:  func(p *patient) { p.run("sed -i.kept 's/^nixbld:.*/nixbld:x:3000:/' /etc/group") },
			want:    diagnosis{words: []string{"has no members", "with users as its members"}},
			remedy:  func(p *patient, _ string) { p.run("mv /etc/group.kept /etc/group") },
		}),
		cannotBuild(cause{
			name: "sandbox", title: "The sandbox does not work",
			mend:   "Look at `sandbox` and `sandbox-paths` in nix.conf, at the kernel's user namespaces, and at the log of nix-daemon.",
			breaks: func(p *patient) { p.nixConf("sandbox = true", "sandbox-paths = /opt/sandbox") },
			want:   diagnosis{words: []string{"/opt/sandbox", "sandbox-paths"}},
			remedy: func(p *patient, _ string) { p.run("mkdir -p /opt/sandbox") },
		}),
		cannotBuild(cause{
			name: "no-room", title: "The canary finds no room",
			means:   "With `spec.thresholds.minFreeSpace` the same shows before a build fails, as `DiskPressure`.",
			mend:    "Free space on the file system of /nix and of the directory for builds: `nix-collect-garbage`.",
			prepare: littleDisk, spec: anyRoom,
			// Some room stays: a daemon that cannot open its database answers nobody.
			breaks: func(p *patient) {
				p.run("head -c $(($(stat -fc '%a*%S' /nix) - 2000000)) /dev/zero >/nix/var/filler")
			},
			want:   diagnosis{words: []string{"lack of free disk space", "free space there"}},
			remedy: func(p *patient, _ string) { p.run("rm /nix/var/filler") },
		}),
		cannotBuild(cause{
			name: "no-jobs", title: "max-jobs is 0",
			mend:   "Set `max-jobs` in the machine's nix.conf to more than 0, and restart nix-daemon.",
			breaks: func(p *patient) { p.nixConf("max-jobs = 0") },
			want:   diagnosis{words: []string{"build", "set max-jobs"}},
			remedy: func(p *patient, _ string) { p.nixConf("max-jobs = 1") },
		}),
		refutesSystem(cause{
			name: "system-refuted", title: "The daemon does not build for a declared system",
			mend:   "Correct `spec.systems`, or add the system to `extra-platforms` in the machine's nix.conf if it can be emulated there.",
			breaks: declareForeign,
			want:   diagnosis{words: []string{foreign, "correct spec.systems"}},
		}),
		refutesSystem(cause{
			name: "emulation", title: "The emulation of a system does not work",
			mend: "Set up QEMU in binfmt_misc with flag F (NixOS: `boot.binfmt.emulatedSystems`; macOS: Rosetta), or leave the system out of `spec.systems`.",
			breaks: func(p *patient) {
				p.nixConf("extra-platforms = " + foreign)
				declareForeign(p)
			},
			want: diagnosis{words: []string{foreign, "Exec format error", "binfmt_misc", "leave it out of spec.systems"}},
		}),
	}
}

// cannotBuild completes a cause for which the canary fails for every system.
func cannotBuild(c cause) cause {
	spec := c.spec
	c.versions = nixlab.Versions()
	c.spec = func(s *v1alpha1.NixBuilderSpec) {
		s.Probe.Canary = v1alpha1.CanaryEnabled
		if spec != nil {
			spec(s)
		}
	}
	c.want.condition, c.want.reason = v1alpha1.ConditionSystemsVerified, "CanaryFailed"
	return c
}

// refutesSystem completes a cause for which the canary fails for one system, which is
// left out of the machines file then.
func refutesSystem(c cause) cause {
	c = cannotBuild(c)
	c.means = "The system has left the machine's line in the machines file; the machine stays in use for the others."
	c.want.reason, c.want.state, c.want.listed = "SystemsRefuted", v1alpha1.EndpointHealthy, true
	c.remedy = func(p *patient, _ string) {
		p.expectLine(1, nixlab.System())
		p.changeSpec(func(spec *v1alpha1.NixBuilderSpec) { spec.Systems = []string{nixlab.System()} })
	}
	return c
}

// anyRoom has free space not looked at.
func anyRoom(spec *v1alpha1.NixBuilderSpec) {
	spec.Thresholds.MinFreeSpace = new(resource.MustParse("0"))
}
