// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// machineOutput is what a machine prints that is well. Its clock is given.
func machineOutput(clock int64) string {
	return fmt.Sprintf("%s\nclock %d\nload 0.50 0.40 0.30 1/200 4711\nprocessors 4\n"+
		"cpu some avg10=1.00 avg60=2.50 avg300=3.00 total=1 full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"+
		"memory some avg10=0.00 avg60=0.00 avg300=0.00 total=0 full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"+
		"io some avg10=9.00 avg60=8.00 avg300=7.00 total=5 full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"+
		"store Filesystem 1024-blocks Used Available Capacity Mounted on /dev/vda1 104857600 52428800 47185920 53%% /nix\n%s\n",
		machineBegin, clock, machineEnd)
}

// lines is a report with these lines.
func lines(text ...string) string {
	return machineBegin + "\n" + strings.Join(text, "\n") + "\n" + machineEnd + "\n"
}

var nothingMeasured = measurement{load: -1, cpu: -1, memory: -1, io: -1}

func TestParseMachine(t *testing.T) {
	t.Parallel()
	with := func(change func(*measurement)) measurement {
		m := nothingMeasured
		change(&m)
		return m
	}
	room := func(free, size int64) measurement {
		return with(func(m *measurement) { m.storeKnown, m.freeBytes, m.storeBytes = true, free<<10, size<<10 })
	}
	const heading = "store Filesystem 1024-blocks Used Available Capacity Mounted on "
	tests := map[string]struct {
		text      string
		want      measurement
		wantClock int64
		wantNone  bool
	}{
		"Linux": {
			text: machineOutput(1700000000), wantClock: 1700000000,
			want: measurement{
				storeKnown: true, freeBytes: 47185920 << 10, storeBytes: 104857600 << 10, load: 0.5, processors: 4,
				cpu: 2.5, memory: 0, io: 8, clockKnown: true,
			},
		},
		"macOS": {
			text: lines("clock 1700000000", "load { 1.25 1.50 2.00 }", "processors 8", "cpu", "memory", "io",
				heading+"/dev/disk3s7 482797652 104857600 356999168 23% /nix"),
			wantClock: 1700000000,
			want: measurement{
				storeKnown: true, freeBytes: 356999168 << 10, storeBytes: 482797652 << 10, load: 1.25, processors: 8,
				cpu: -1, memory: -1, io: -1, clockKnown: true,
			},
		},
		"the shell prints before and after": {
			text: "Welcome!\nclock 1\n" + lines("processors 2") + "processors 3\nbye\n", want: with(func(m *measurement) { m.processors = 2 }),
		},
		"names with spaces and percent": {text: lines(heading + "//me@nas/My 5 6 7% Share 100 60 40 60% /Volumes/10 20 30 40"), want: room(40, 100)},
		"overdrawn":                     {text: lines(heading + "/dev/sda 100 104 -4 104% /"), want: room(0, 100)},
		"capacity not told":             {text: lines(heading + "none 100 60 40 - /"), want: nothingMeasured},
		"empty report":                  {text: lines(""), want: nothingMeasured},
		"nothing":                       {wantNone: true},
		"not ended":                     {text: machineBegin + "\nprocessors 2\n", wantNone: true},
		"not begun":                     {text: "processors 2\n" + machineEnd + "\n", wantNone: true},
		"begun in the middle of a line": {text: "$ echo " + machineBegin + "\nprocessors 2\n" + machineEnd, wantNone: true},
		"nonsense": {
			text: lines("clock now", "clock -5", "clock 99999999999999", "clock 1 2", "load x y z", "load 1", "load { }", "processors 0", "processors many",
				"processors 99999999", "cpu full avg10=1 avg60=1", "cpu some avg10=1 avg300=1", "memory some avg10=1 avg60=NaN", "io some avg10=1 avg60=101",
				heading+"/dev/sda 100 60 140 60% /", heading+"/dev/sda 0 0 0 0% /", heading+"/dev/sda 10%", "store 5%"),
			want: nothingMeasured,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, clock, ok := parseMachine(tc.text)
			if ok == tc.wantNone || clock != tc.wantClock {
				t.Errorf("ok %v, clock %d", ok, clock)
			}
			if tc.wantNone {
				tc.want = nothingMeasured
			}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(measurement{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Whatever a machine prints, only figures that can be are believed.
func FuzzMachineReport(f *testing.F) {
	f.Add(machineOutput(1700000000))
	f.Add(lines("load { 1.25 1.50 2.00 }", "processors 8", "store x 100 104 -4 104% /"))
	f.Add("hello\n" + lines("cpu some avg10=1 avg60=1e2", "io some avg10=1 avg60=0x1p3", "processors +4"))
	f.Add(machineBegin + "\n" + machineBegin + "\n" + machineEnd)
	f.Fuzz(func(t *testing.T, text string) {
		m, clock, ok := parseMachine(text)
		percent := func(value float64) bool { return value == -1 || value >= 0 && value <= 100 }
		switch {
		case !ok && (m != nothingMeasured || clock != 0):
			t.Errorf("no report, and %+v", m)
		case m.storeKnown != (m.storeBytes > 0), m.freeBytes < 0, m.freeBytes > m.storeBytes, m.storeBytes > maxStoreKiB<<10:
			t.Errorf("room %+v", m)
		case m.processors < 0 || m.processors > maxProcessors, m.load != -1 && (m.load < 0 || m.load > maxLoad):
			t.Errorf("load %+v", m)
		case !percent(m.cpu), !percent(m.memory), !percent(m.io):
			t.Errorf("pressure %+v", m)
		case clock < 0, clock > 0 && !m.clockKnown:
			t.Errorf("clock %d %+v", clock, m)
		}
		for _, thresholds := range []Thresholds{{}, allThresholds} {
			fit := fitness{thresholds: thresholds}
			reason, what := fit.judge(&m)
			target := Target{Endpoint: "mac-2", Host: "10.0.0.5", Port: 22, User: "nixt"}
			if message := messageMachine(&target, reason, what); len(message) > MaxMessage {
				t.Errorf("%d bytes: %s", len(message), message)
			}
			if entry, _ := entryOf(reason); entry.Step != StepMachineFit {
				t.Errorf("reason %s", reason)
			}
		}
	})
}

// Every shell that is here understands the command, and what it prints makes sense.
func TestMachineCommandInShells(t *testing.T) {
	t.Parallel()
	if strings.ContainsAny(machineCommand, "!\\\n") || strings.Count(machineCommand, "'") != 2 || len(machineCommand) > 1000 {
		t.Errorf("not portable: %s", machineCommand)
	}
	for _, shell := range []string{"bash", "dash", "zsh", "fish", "tcsh", "ksh", "mksh", "busybox"} {
		path, err := exec.LookPath(shell)
		if err != nil {
			continue
		}
		t.Run(shell, func(t *testing.T) {
			t.Parallel()
			args := []string{"-c", machineCommand}
			if shell == "busybox" {
				args = append([]string{"sh"}, args...)
			}
			output, err := exec.Command(path, args...).Output()
			if err != nil {
				t.Fatal(err)
			}
			m, clock, ok := parseMachine(string(output))
			if !ok || clock == 0 || m.load < 0 || m.processors == 0 {
				t.Errorf("%+v from\n%s", m, output)
			}
		})
	}
}

// The room is read off with the programs of another kind of system, too.
func TestMachineCommandWithBusybox(t *testing.T) {
	t.Parallel()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("no busybox")
	}
	bin := t.TempDir()
	for _, applet := range []string{"df", "date", "cat", "nproc", "getconf"} {
		if err := os.Symlink(busybox, filepath.Join(bin, applet)); err != nil {
			t.Fatal(err)
		}
	}
	run := exec.Command("sh", "-c", strings.Replace(machineCommand, "/nix/store", "/", 1))
	run.Env = []string{"PATH=" + bin}
	output, err := run.Output()
	if err != nil {
		t.Fatal(err)
	}
	if m, _, ok := parseMachine(string(output)); !ok || !m.storeKnown || m.processors == 0 {
		t.Errorf("%+v from\n%s", m, output)
	}
}
