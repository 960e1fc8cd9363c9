// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package image

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"debug/elf"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// root is the source tree, seen from this package.
const root = "../.."

// version is what the images under test are stamped with.
const version = "1.2.3-test"

// twice is one image, made two times under circumstances that differ.
type twice struct {
	first, second   string // directories with what hack/image wrote
	digest, another string
	err             error
}

var both = sync.OnceValue(func() twice {
	work, err := os.MkdirTemp("", "image-test-")
	if err != nil {
		return twice{err: err}
	}
	directory = work
	return makeTwice(work)
})

// directory is where the images under test lie, once there are any.
var directory string

func TestMain(m *testing.M) {
	status := m.Run()
	if directory != "" {
		os.RemoveAll(directory)
	}
	os.Exit(status)
}

// made returns the images under test.
func made(t *testing.T) twice {
	t.Helper()
	images := both()
	if images.err != nil {
		t.Fatal(images.err)
	}
	return images
}

// makeTwice makes the image from the source tree, and from a copy of it in
// another directory, whose files are newer and readable by their owner only,
// with another directory for temporary files.
func makeTwice(work string) twice {
	program := filepath.Join(work, "image")
	build := exec.Command("go", "build", "-o", program, ".")
	build.Dir = filepath.Join(root, "hack", "image")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false", "GOWORK=off")
	if output, err := build.CombinedOutput(); err != nil {
		return twice{err: &failure{build, output, err}}
	}
	result := twice{first: filepath.Join(work, "first"), second: filepath.Join(work, "second")}
	if result.digest, result.err = run(program, root, result.first, os.TempDir()); result.err != nil {
		return result
	}
	tree := filepath.Join(work, "copy", "of", "tree")
	previous := syscall.Umask(0o077)
	defer syscall.Umask(previous)
	for _, name := range []string{"go.mod", "go.sum", "api", "cmd", "controllers", "internal", "hack/image"} {
		if result.err = copyTree(filepath.Join(root, name), filepath.Join(tree, name)); result.err != nil {
			return result
		}
	}
	temporary := filepath.Join(work, "another-place")
	if result.err = os.Mkdir(temporary, 0o700); result.err != nil {
		return result
	}
	result.another, result.err = run(program, tree, result.second, temporary)
	return result
}

// failure is a command that failed, with what it wrote.
type failure struct {
	command *exec.Cmd
	output  []byte
	err     error
}

func (f *failure) Error() string {
	return f.command.String() + ": " + f.err.Error() + "\n" + string(f.output)
}

// run makes the image of a tree and returns the digest that it printed.
func run(program, tree, out, temporary string) (string, error) {
	command := exec.Command(program, "-source="+tree, "-out="+out, "-version="+version, "-name=nix-builder-operator:"+version)
	command.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1767225600", "TMPDIR="+temporary)
	var output, errors bytes.Buffer
	command.Stdout, command.Stderr = &output, &errors
	if err := command.Run(); err != nil {
		return "", &failure{command, errors.Bytes(), err}
	}
	return strings.TrimSpace(output.String()), nil
}

func copyTree(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	if info, err := os.Stat(from); err != nil || !info.IsDir() {
		data, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		return os.WriteFile(to, data, 0o600)
	}
	return os.CopyFS(to, os.DirFS(from))
}

// equal fails the test unless two values are the same.
func equal(t *testing.T, what string, want, got any) {
	t.Helper()
	if lists, ok := got.([]string); ok && len(lists) == 0 && want == nil {
		return
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(entry{})); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestReproducible(t *testing.T) {
	t.Parallel()
	images := made(t)
	equal(t, "digest", images.digest, images.another)
	for _, name := range []string{"image.tar", "linux-amd64.spdx.json", "linux-arm64.spdx.json"} {
		equal(t, name, fileDigest(t, filepath.Join(images.first, name)), fileDigest(t, filepath.Join(images.second, name)))
	}
	l := layout{t, filepath.Join(images.first, "image")}
	equal(t, "the digest that is printed", l.index().Manifests[0].Digest, images.digest)
}

func fileDigest(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func TestArchitectures(t *testing.T) {
	t.Parallel()
	l := layout{t, filepath.Join(made(t).first, "image")}
	machines := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
	images := l.images()
	if len(images) != len(machines) {
		t.Errorf("images for %v", images)
	}
	for architecture, machine := range machines {
		image := images[architecture]
		config := l.configuration(image)
		equal(t, "operating system", "linux", config.OS)
		equal(t, "architecture", architecture, config.Architecture)
		for _, name := range []string{"manager", "nix-dispatcher", "nix-dispatch-connect"} {
			program, err := elf.NewFile(strings.NewReader(l.files(image)[name].data))
			if err != nil {
				t.Fatalf("%s for %s: %v", name, architecture, err)
			}
			equal(t, name+": machine", machine, program.Machine)
			if slices.ContainsFunc(program.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
				t.Errorf("%s for %s is not static", name, architecture)
			}
			// The helper never says its version, so the linker drops it.
			if name != "nix-dispatch-connect" && !strings.Contains(l.files(image)[name].data, version) {
				t.Errorf("%s for %s lacks its version", name, architecture)
			}
		}
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	l := layout{t, filepath.Join(made(t).first, "image")}
	annotations := l.index().Manifests[0].Annotations
	equal(t, "name in a layout", version, annotations["org.opencontainers.image.ref.name"])
	equal(t, "name for containerd", "docker.io/library/nix-builder-operator:"+version, annotations["io.containerd.image.name"])
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	l := layout{t, filepath.Join(made(t).first, "image")}
	for architecture, image := range l.images() {
		text := l.files(image)["etc/ssl/certs/ca-certificates.crt"].data
		if !x509.NewCertPool().AppendCertsFromPEM([]byte(text)) {
			t.Fatalf("%s: there are no certificates", architecture)
		}
		if count := strings.Count(text, "-----BEGIN CERTIFICATE-----"); count < 50 {
			t.Errorf("%s: only %d certificates", architecture, count)
		}
	}
}

// The user that the image names is one that its own files know, and not root.
func TestUser(t *testing.T) {
	t.Parallel()
	l := layout{t, filepath.Join(made(t).first, "image")}
	image := l.images()["amd64"]
	user, group, _ := strings.Cut(l.configuration(image).Config.User, ":")
	files := l.files(image)
	if fields := strings.Split(files["etc/passwd"].data, ":"); len(fields) != 7 || fields[2] != user || fields[3] != group || user == "0" {
		t.Errorf("user %s:%s, but /etc/passwd is %q", user, group, files["etc/passwd"].data)
	}
	if fields := strings.Split(files["etc/group"].data, ":"); len(fields) != 4 || fields[2] != group {
		t.Errorf("group %s, but /etc/group is %q", group, files["etc/group"].data)
	}
}
