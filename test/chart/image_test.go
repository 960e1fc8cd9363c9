// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chart

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
)

// The manifests run programs that the image has, by the paths it has them at.
func TestImageHasWhatRuns(t *testing.T) {
	t.Parallel()
	dockerfile := readFile(t, "Dockerfile")
	build := regexp.MustCompile(`-o /out/((?: \./cmd/[a-z-]+)+)\n`).FindStringSubmatch(dockerfile)
	if build == nil || !strings.Contains(dockerfile, "COPY --from=build /out/ /\n") {
		t.Fatal("the Dockerfile does not build ./cmd/… to the root of the image")
	}
	var programs []string
	for _, dir := range strings.Fields(build[1]) {
		programs = append(programs, strings.TrimPrefix(dir, "./cmd"))
	}
	used := map[string]string{"config and chart": get[*appsv1.Deployment](t, template(t, defaults), Release).Spec.Template.Spec.Containers[0].Command[0]}
	for name, pod := range examples(t) {
		for _, sidecar := range pod.Spec.InitContainers {
			used[name] = sidecar.Command[0]
			used[name+", startup probe"] = sidecar.StartupProbe.Exec.Command[0]
			used[name+", readiness probe"] = sidecar.ReadinessProbe.Exec.Command[0]
		}
	}
	for where, program := range used {
		if !slices.Contains(programs, program) {
			t.Errorf("%s: the image has %v, not %s", where, programs, program)
		}
	}
	if !slices.Contains(programs, "/nix-dispatch-connect") {
		t.Error("the image lacks the connect helper, which the dispatcher installs")
	}
}

// The image has no shell and does not run as root, and its build gets what it
// copies.
func TestDockerfile(t *testing.T) {
	t.Parallel()
	dockerfile := readFile(t, "Dockerfile")
	_, last, found := strings.Cut(dockerfile, "\nFROM scratch\n")
	if !found || strings.Contains(last, "\nRUN ") {
		t.Error("the image is not made from scratch, or runs something while it is made")
	}
	if !regexp.MustCompile(`(?m)^USER [1-9][0-9]*:[1-9][0-9]*$`).MatchString(last) {
		t.Error("the image's user is not a number other than root's")
	}
	allowed := readFile(t, ".dockerignore")
	for _, copied := range regexp.MustCompile(`(?m)^COPY ([a-z].*) [a-z./]+$`).FindAllStringSubmatch(dockerfile, -1) {
		for _, source := range strings.Fields(copied[1]) {
			if !strings.Contains(allowed, "!"+strings.TrimSuffix(source, "/")+"\n") {
				t.Errorf(".dockerignore keeps %s away from the build", source)
			}
		}
	}
}

// Every flag that a manifest passes is one that the program has.
func TestFlagsExist(t *testing.T) {
	t.Parallel()
	commands := map[string][]string{}
	for _, values := range []string{defaults, everything, someNamespaces, "metrics: {access: Anyone}"} {
		container := get[*appsv1.Deployment](t, template(t, values), Release).Spec.Template.Spec.Containers[0]
		commands[container.Command[0]] = append(commands[container.Command[0]], container.Args...)
	}
	for _, pod := range examples(t) {
		for _, sidecar := range pod.Spec.InitContainers {
			commands[sidecar.Command[0]] = append(commands[sidecar.Command[0]], slices.Concat(sidecar.Command[1:], sidecar.Args)...)
		}
	}
	for command, args := range commands {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			usage := usage(t, command)
			for _, arg := range args {
				name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
				if strings.HasPrefix(arg, "-") && !regexp.MustCompile(`(?m)^\s+--?`+regexp.QuoteMeta(name)+`\b`).MatchString(usage) {
					t.Errorf("there is no flag %s:\n%s", arg, usage)
				}
			}
		})
	}
}

// The paths that the dispatcher's example mounts are the program's defaults,
// which is why it passes no flags.
func TestExampleUsesDefaultPaths(t *testing.T) {
	t.Parallel()
	usage := usage(t, "/nix-dispatcher")
	for _, mount := range examples(t)["dispatched-pod.yaml"].Spec.InitContainers[0].VolumeMounts {
		path := mount.MountPath
		if strings.HasPrefix(path, keysDir) {
			path = filepath.Dir(path)
		}
		if !regexp.MustCompile(`default "?` + regexp.QuoteMeta(path) + `["/)]`).MatchString(usage) {
			t.Errorf("the dispatcher has no default path %s:\n%s", path, usage)
		}
	}
}

// usage builds a program, with the flags of the Makefile and so from what it
// has compiled, and returns its help.
func usage(t *testing.T, program string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), filepath.Base(program))
	build := exec.Command("go", "build", "-o", path, "./cmd"+program)
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", build, err, out)
	}
	out, _ := exec.Command(path, "--help").CombinedOutput() // some exit with a status other than 0
	return string(out)
}
