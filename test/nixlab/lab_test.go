// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixlab_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// crashVariable makes the test binary the process whose death is looked at.
const crashVariable = "NIXLAB_TEST_CRASH"

func TestMain(m *testing.M) {
	if way := os.Getenv(crashVariable); way != "" {
		crash(way)
	}
	os.Exit(m.Run())
}

// newLab makes a lab, or skips the test with the reason why there is none.
func newLab(t *testing.T) *nixlab.Lab {
	t.Helper()
	if err := nixlab.Prerequisites(); err != nil {
		t.Skip(err)
	}
	lab, err := nixlab.New(nixlab.Options{Progress: func(line string) { t.Log(line) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	return lab
}

func TestBuilderSpeaksTheProtocol(t *testing.T) {
	lab := newLab(t)
	if _, err := lab.Prepare(t.Context(), nixlab.Versions()...); err != nil {
		t.Fatal(err)
	}
	for _, version := range nixlab.Versions() {
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			builder, err := lab.StartBuilder(t.Context(), nixlab.BuilderOptions{Name: "b" + strings.ReplaceAll(string(version), ".", "-"), Version: version})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("Nix %s on %s, up after %v", builder.Nix(), builder.Address(), time.Since(began))
			for _, user := range []string{nixlab.TrustedUser, nixlab.UntrustedUser} {
				if protocol := handshake(t, lab, builder, user); protocol < 0x122 {
					t.Errorf("protocol of %s: %#x, want at least 1.34", user, protocol)
				}
			}
		})
	}
}

// handshake starts nix-daemon on the builder and returns its protocol version.
func handshake(t *testing.T, lab *nixlab.Lab, builder *nixlab.Builder, user string) uint64 {
	t.Helper()
	text, err := os.ReadFile(lab.ClientKeyFile())
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.ParsePrivateKey(text)
	if err != nil {
		t.Fatal(err)
	}
	hostKey, _, _, _, err := ssh.ParseAuthorizedKey([]byte(builder.HostKey()))
	if err != nil {
		t.Fatal(err)
	}
	client, err := ssh.Dial("tcp", builder.Address(), &ssh.ClientConfig{
		User:              user,
		Auth:              []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback:   ssh.FixedHostKey(hostKey),
		HostKeyAlgorithms: []string{hostKey.Type()},
		Timeout:           10 * time.Second,
	})
	if err != nil {
		t.Fatalf("dial %s: %v\n%s", builder.Name(), err, builder.Logs())
	}
	defer client.Close()
	session, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	in, err := session.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := session.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := session.Start("nix-daemon --stdio"); err != nil {
		t.Fatal(err)
	}
	if err := binary.Write(in, binary.LittleEndian, uint64(0x6e697863)); err != nil {
		t.Fatal(err)
	}
	// 2.20 and later take the version together with the first word.
	if err := binary.Write(in, binary.LittleEndian, uint64(0x123)); err != nil {
		t.Fatal(err)
	}
	var reply [2]uint64
	if err := binary.Read(out, binary.LittleEndian, &reply); err != nil {
		t.Fatal(err)
	}
	if reply[0] != 0x6478696f {
		t.Fatalf("first word of nix-daemon: %#x", reply[0])
	}
	return reply[1]
}

func TestStockClientBuilds(t *testing.T) {
	lab := newLab(t)
	for _, version := range nixlab.Versions() {
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			suffix := strings.ReplaceAll(string(version), ".", "-")
			builder, err := lab.StartBuilder(t.Context(), nixlab.BuilderOptions{Name: "b" + suffix, Version: version})
			if err != nil {
				t.Fatal(err)
			}
			client, err := lab.StartClient(t.Context(), nixlab.ClientOptions{Name: "c" + suffix, Version: version, Network: true})
			if err != nil {
				t.Fatal(err)
			}
			if err := client.WriteFile("/root/.ssh/known_hosts", builder.KnownHostsLine()+"\n", 0o644); err != nil {
				t.Fatal(err)
			}
			machine := fmt.Sprintf("ssh-ng://%s@%s %s /etc/nix/builder_key 1 1", nixlab.TrustedUser, builder.IP(), nixlab.System())
			result, err := client.Run(t.Context(), "env", fmt.Sprintf("NIX_SSHOPTS=-p %d", builder.Port()),
				"nix-build", "--no-out-link", "--builders", machine, "--expr", nixlab.Trivial("stock"))
			if err != nil {
				t.Fatal(err)
			}
			if result.Status != 0 {
				t.Fatalf("nix-build: status %d\n%s\n%s", result.Status, result.Stderr, builder.Logs())
			}
			if !strings.Contains(result.Stderr, "building '") || !strings.HasSuffix(strings.TrimSpace(result.Stdout), "-stock") {
				t.Errorf("stdout %q, stderr %q: it does not look like a remote build", result.Stdout, result.Stderr)
			}
			paths, err := builder.StorePaths()
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(strings.Join(paths, "\n"), "-stock") {
				t.Errorf("the builder's store has only %q", paths)
			}
		})
	}
}

func TestClientWithoutNetwork(t *testing.T) {
	lab := newLab(t)
	volume := t.TempDir()
	if err := os.WriteFile(filepath.Join(volume, "machines"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, daemon := range map[string]bool{"single": false, "daemon": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, err := lab.StartClient(t.Context(), nixlab.ClientOptions{Name: name, Volume: volume, Daemon: daemon})
			if err != nil {
				t.Fatal(err)
			}
			if out, err := client.Exec(t.Context(), "sh", "-c", "! command -v ssh"); err != nil {
				t.Errorf("there is an ssh: %s", out)
			}
			if out, err := client.Exec(t.Context(), "sh", "-c", "! grep -rl 'PRIVATE KEY' /etc /root /home /run"); err != nil {
				t.Errorf("there are keys: %s", out)
			}
			if _, err := client.Exec(t.Context(), "touch", nixlab.VolumePath+"/x"); err == nil {
				t.Error("the client could write to the volume")
			}
			// Nothing to build on, and yet evaluation and the store work.
			result, err := client.NixBuildExpr(t.Context(), nixlab.Trivial("nowhere"))
			if err != nil {
				t.Fatal(err)
			}
			if result.Status == 0 {
				t.Errorf("a build without builders succeeded: %s", result.Stderr)
			}
			result, err = client.Run(t.Context(), "nix-instantiate", "--expr", nixlab.Trivial("nowhere"))
			if err != nil || result.Status != 0 {
				t.Errorf("nix-instantiate: %v, %+v", err, result)
			}
		})
	}
}

func TestStopping(t *testing.T) {
	lab := newLab(t)
	builder, err := lab.StartBuilder(t.Context(), nixlab.BuilderOptions{Name: "b"})
	if err != nil {
		t.Fatal(err)
	}
	answers := func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		command, err := builder.Command(ctx, nixlab.TrustedUser, []string{"NIX_REMOTE=daemon"}, "nix-store", "--query", "--hash", "/nix/store/00000000000000000000000000000000-x")
		if err != nil {
			t.Fatal(err)
		}
		command.WaitDelay = time.Millisecond
		output, _ := command.CombinedOutput()
		return strings.Contains(string(output), "not valid")
	}
	if !answers() {
		t.Fatalf("nix-daemon does not answer at all\n%s", builder.Logs())
	}
	for name, tc := range map[string]struct{ stop, resume func() error }{
		"daemon": {builder.StopDaemon, builder.ContinueDaemon},
		"all":    {builder.StopProcesses, builder.ContinueProcesses},
	} {
		if err := tc.stop(); err != nil {
			t.Fatal(err)
		}
		if answers() {
			t.Errorf("%s: nix-daemon answers though stopped", name)
		}
		if err := tc.resume(); err != nil {
			t.Fatal(err)
		}
		if !answers() {
			t.Errorf("%s: nix-daemon does not answer again", name)
		}
	}
	builder.Kill()
	if _, err := builder.Exec(t.Context(), "true"); err == nil {
		t.Error("a killed builder runs commands")
	}
	if err := builder.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !answers() {
		t.Errorf("nix-daemon does not answer after a restart\n%s", builder.Logs())
	}
}

// crash makes a lab with a builder, tells where they are, and ends in the way
// named, without closing the lab.
func crash(way string) {
	lab, err := nixlab.New(nixlab.Options{})
	if err != nil {
		panic(err)
	}
	builder, err := lab.StartBuilder(context.Background(), nixlab.BuilderOptions{Name: "b"})
	if err != nil {
		panic(err)
	}
	inside, err := builder.Exec(context.Background(), "readlink", "/proc/1/ns/pid")
	if err != nil {
		panic(err)
	}
	fmt.Println(lab.Dir(), strings.TrimSpace(inside))
	switch way {
	case "panic":
		panic("as the test wants it")
	case "exit":
		os.Exit(3)
	default:
		select {} // until killed
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	if err := nixlab.Prerequisites(); err != nil {
		t.Skip(err)
	}
	if _, err := nixlab.PrepareRootFS(t.Context(), nil, nixlab.Newest); err != nil {
		t.Fatal(err)
	}
	for _, way := range []string{"panic", "exit", "interrupt", "kill"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			command := exec.CommandContext(t.Context(), os.Args[0])
			command.Env = append(os.Environ(), crashVariable+"="+way)
			command.Stderr = io.Discard
			stdout, err := command.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := command.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(stdout).ReadString('\n')
			if err != nil {
				t.Fatalf("the process told nothing: %v", err)
			}
			dir, namespace, _ := strings.Cut(strings.TrimSpace(line), " ")
			switch way {
			case "interrupt":
				err = command.Process.Signal(os.Interrupt)
			case "kill":
				err = command.Process.Kill()
			}
			if err != nil {
				t.Fatal(err)
			}
			var exit *exec.ExitError
			if err := command.Wait(); !errors.As(err, &exit) {
				t.Fatalf("the process ended with %v, want a failure", err)
			}
			eventually(t, "the directory is removed", func() bool {
				_, err := os.Stat(dir)
				return errors.Is(err, os.ErrNotExist)
			})
			eventually(t, "all processes of the builder are gone", func() bool { return len(members(t, namespace)) == 0 })
			mounts, err := os.ReadFile("/proc/self/mounts")
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(mounts), dir) {
				t.Errorf("mounts are left:\n%s", mounts)
			}
		})
	}
}

// members lists the processes of a process namespace.
func members(t *testing.T, namespace string) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var found []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if link, err := os.Readlink(filepath.Join("/proc", entry.Name(), "ns/pid")); err == nil && link == namespace {
			if syscall.Kill(pid, 0) == nil {
				found = append(found, pid)
			}
		}
	}
	return found
}

// eventually waits for something that another process does.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.NewTimer(15 * time.Second)
	defer deadline.Stop()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for !condition() {
		select {
		case <-deadline.C:
			t.Fatalf("after 15 s still not: %s", what)
		case <-ticker.C:
		}
	}
}
