// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package image

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// instruction is one line of a Dockerfile, continuation lines joined.
type instruction struct {
	name      string
	arguments string
}

// recipe is what a Dockerfile says about the image it makes.
type recipe struct {
	files         map[string]entry
	user, workdir string
	entrypoint    []string
	env           []string
	labels        map[string]string
}

// stages splits a Dockerfile at its FROM instructions.
func stages(text string) [][]instruction {
	text = regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(text, "")
	text = strings.ReplaceAll(text, "\\\n", " ")
	var all [][]instruction
	for line := range strings.Lines(text) {
		name, arguments, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case name == "":
		case name == "FROM":
			all = append(all, []instruction{{name, arguments}})
		default:
			all[len(all)-1] = append(all[len(all)-1], instruction{name, arguments})
		}
	}
	return all
}

// read works out what the last stage of a Dockerfile makes. It knows what the
// project's own uses and fails with whatever else there may be one day.
func read(text, version string) (recipe, error) {
	all := stages(text)
	if len(all) != 2 {
		return recipe{}, fmt.Errorf("%d stages, not 2", len(all))
	}
	made := recipe{files: map[string]entry{}, workdir: "/", labels: map[string]string{}}
	for _, step := range all[1] {
		arguments := strings.ReplaceAll(step.arguments, "$VERSION", version)
		var err error
		switch step.name {
		case "FROM":
			if arguments != "scratch" {
				err = fmt.Errorf("it is made from %s", arguments)
			}
		case "ARG":
		case "LABEL":
			for _, pair := range regexp.MustCompile(`([a-z.]+)="([^"]*)"`).FindAllStringSubmatch(arguments, -1) {
				made.labels[pair[1]] = pair[2]
			}
		case "ENV":
			made.env = append(made.env, arguments)
		case "USER":
			made.user = arguments
		case "WORKDIR":
			made.workdir = arguments
		case "ENTRYPOINT":
			err = json.Unmarshal([]byte(arguments), &made.entrypoint)
		case "COPY":
			err = made.copy(arguments, built(all[0]))
		default:
			err = fmt.Errorf("this test does not know %s", step.name)
		}
		if err != nil {
			return recipe{}, err
		}
	}
	return made, nil
}

// built returns the files that the first stage makes, by their paths there.
func built(stage []instruction) map[string]entry {
	files := map[string]entry{"/etc/ssl/certs/ca-certificates.crt": {Mode: 0o644}} // of its base image
	for _, step := range stage {
		if match := regexp.MustCompile(`-o (/\S+/)((?: \./cmd/[a-z-]+)+)`).FindStringSubmatch(step.arguments); match != nil {
			for _, command := range strings.Fields(match[2]) {
				files[match[1]+path.Base(command)] = entry{Mode: 0o755}
			}
		}
	}
	return files
}

// copy does what COPY does.
func (r recipe) copy(arguments string, built map[string]entry) error {
	words := strings.Fields(arguments)
	from, mode := "", int64(0)
	for strings.HasPrefix(words[0], "--") {
		var err error
		if value, found := strings.CutPrefix(words[0], "--from="); found {
			from = value
		} else if value, found := strings.CutPrefix(words[0], "--chmod="); found {
			mode, err = strconv.ParseInt(value, 8, 32)
		} else {
			err = fmt.Errorf("this test does not know COPY %s", words[0])
		}
		if err != nil {
			return err
		}
		words = words[1:]
	}
	target := words[len(words)-1]
	if !strings.HasSuffix(target, "/") {
		return fmt.Errorf("COPY to %s: this test knows directories only", target)
	}
	for _, source := range words[:len(words)-1] {
		switch {
		case from == "" && mode == 0:
			return fmt.Errorf("COPY %s without --chmod: its mode is that of whatever was checked out", source)
		case from == "":
			r.add(target+path.Base(source), mode)
		case strings.HasSuffix(source, "/"):
			for file, found := range built {
				if path.Dir(file)+"/" == source {
					r.add(target+path.Base(file), found.Mode)
				}
			}
		default:
			found, exists := built[source]
			if !exists {
				return fmt.Errorf("COPY %s: the first stage does not make that", source)
			}
			r.add(target+path.Base(source), found.Mode)
		}
	}
	return nil
}

func (r recipe) add(file string, mode int64) {
	file = strings.Trim(file, "/")
	r.files[file] = entry{Mode: mode}
	for dir := path.Dir(file); dir != "."; dir = path.Dir(dir) {
		r.files[dir] = entry{Mode: 0o755 | int64(os.ModeDir)}
	}
}

// withoutData drops what [entry] holds besides what is compared.
func withoutData(files map[string]entry) map[string]entry {
	files = maps.Clone(files)
	for name, file := range files {
		file.data = ""
		files[name] = file
	}
	return files
}

func TestImageIsThatOfTheDockerfile(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(root, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := read(string(text), version)
	if err != nil {
		t.Fatal("Dockerfile: ", err)
	}
	l := layout{t, filepath.Join(made(t).first, "image")}
	for architecture, image := range l.images() {
		config := l.configuration(image).Config
		equal(t, architecture+": files", want.files, withoutData(l.files(image)))
		equal(t, architecture+": user", want.user, config.User)
		equal(t, architecture+": directory", want.workdir, config.WorkingDir)
		equal(t, architecture+": entrypoint", want.entrypoint, config.Entrypoint)
		equal(t, architecture+": arguments", nil, config.Cmd)
		equal(t, architecture+": environment", want.env, config.Env)
		equal(t, architecture+": labels", want.labels, config.Labels)
	}
}

func TestReadRefusesWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	const first = "FROM golang AS build\nRUN go build -o /out/ ./cmd/a ./cmd/b\n"
	tests := map[string]struct {
		last string
		want string
	}{
		"base":            {"FROM debian\n", "it is made from debian"},
		"instruction":     {"FROM scratch\nVOLUME /x\n", "this test does not know VOLUME"},
		"mode":            {"FROM scratch\nCOPY a /\n", "COPY a without --chmod: its mode is that of whatever was checked out"},
		"unknown source":  {"FROM scratch\nCOPY --from=build /c /\n", "COPY /c: the first stage does not make that"},
		"unknown option":  {"FROM scratch\nCOPY --chown=1 a /\n", "this test does not know COPY --chown=1"},
		"file for target": {"FROM scratch\nCOPY --from=build /out/a /b\n", "COPY to /b: this test knows directories only"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := read(first+tc.last, "1")
			if err == nil || err.Error() != tc.want {
				t.Errorf("got %v, want %s", err, tc.want)
			}
		})
	}
	got, err := read(first+"FROM scratch\nARG VERSION\nLABEL a=\"b\" \\\n  v=\"$VERSION\"\nCOPY --from=build /out/ /x/\n", "1")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "files", map[string]entry{"x": {Mode: 0o755 | int64(os.ModeDir)}, "x/a": {Mode: 0o755}, "x/b": {Mode: 0o755}}, got.files)
	equal(t, "labels", map[string]string{"a": "b", "v": "1"}, got.labels)
}
