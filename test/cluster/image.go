// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package cluster

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// pauseImage holds the namespaces of every pod.
const pauseImage = "localhost/pause:1"

// imageConfig is what an image says besides its files.
type imageConfig struct {
	Entrypoint []string `json:"Entrypoint,omitempty"`
	Cmd        []string `json:"Cmd,omitempty"`
	Env        []string `json:"Env,omitempty"`
}

// layer is the only layer of an image while it is written.
type layer struct {
	archive *tar.Writer
}

// file adds a program or file of this machine.
func (l *layer) file(source, name string) error {
	data, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	return l.data(name, 0o755, data)
}

// data adds a file with such content.
func (l *layer) data(name string, mode int64, data []byte) error {
	if err := l.archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err := l.archive.Write(data)
	return err
}

// directory adds one that belongs to a user.
func (l *layer) directory(name string, user int) error {
	return l.archive.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, Uid: user, Gid: user})
}

// tree adds all files below a directory of this machine but those that skip
// names, by their paths in the image.
func (l *layer) tree(root string, skip func(string) bool) error {
	return filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil || name == "." {
			return err
		}
		if skip(name) {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		return l.node(path, name, info)
	})
}

// node adds one file, directory or link. Others, such as devices, no image has.
func (l *layer) node(path, name string, info fs.FileInfo) error {
	link := ""
	var err error
	switch kind := info.Mode().Type(); kind {
	case 0, fs.ModeDir:
	case fs.ModeSymlink:
		if link, err = os.Readlink(path); err != nil {
			return err
		}
	default:
		return nil
	}
	header, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	header.Name = name
	header.Uname, header.Gname = "", ""
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		header.Uid, header.Gid = int(stat.Uid), int(stat.Gid)
	}
	if err := l.archive.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
		return err
	}
	source, err := os.Open(path)
	if err != nil {
		return err
	}
	defer source.Close()
	_, err = io.Copy(l.archive, source)
	return err
}

// blob is a finished part of an image.
type blob struct {
	Type   string `json:"mediaType"`
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
}

// counter counts and sums what is written through it.
type counter struct {
	io.Writer
	sum  hash.Hash
	size int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.sum.Write(p[:n])
	c.size += int64(n)
	return n, err
}

func (c *counter) digest() string { return "sha256:" + hex.EncodeToString(c.sum.Sum(nil)) }

// writeImage makes an archive of an image with one layer, uncompressed: it
// goes no further than this machine.
func writeImage(target, name string, config imageConfig, fill func(*layer) error) error {
	content, err := os.CreateTemp(filepath.Dir(target), "layer-")
	if err != nil {
		return err
	}
	defer os.Remove(content.Name())
	defer content.Close()
	counted := &counter{Writer: content, sum: sha256.New()}
	l := &layer{archive: tar.NewWriter(counted)}
	if err := fill(l); err != nil {
		return fmt.Errorf("image %s: %w", name, err)
	}
	if err := l.archive.Close(); err != nil {
		return fmt.Errorf("image %s: %w", name, err)
	}
	if _, err := content.Seek(0, io.SeekStart); err != nil {
		return err
	}
	layerBlob := blob{Type: "application/vnd.oci.image.layer.v1.tar", Digest: counted.digest(), Size: counted.size}
	files := map[string]any{}
	configBlob, err := addJSON(files, "application/vnd.oci.image.config.v1+json", map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": config,
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layerBlob.Digest}},
	})
	if err != nil {
		return err
	}
	manifest, err := addJSON(files, "application/vnd.oci.image.manifest.v1+json", map[string]any{
		"schemaVersion": 2, "config": configBlob, "layers": []blob{layerBlob},
	})
	if err != nil {
		return err
	}
	files["oci-layout"] = map[string]string{"imageLayoutVersion": "1.0.0"}
	files["index.json"] = map[string]any{"schemaVersion": 2, "manifests": []any{map[string]any{
		"mediaType": manifest.Type, "digest": manifest.Digest, "size": manifest.Size,
		"annotations": map[string]string{"io.containerd.image.name": name},
	}}}
	return packImage(target, files, layerBlob, content)
}

// addJSON adds a blob to the files of a layout.
func addJSON(files map[string]any, kind string, value any) (blob, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return blob{}, err
	}
	sum := sha256.Sum256(data)
	digest := hex.EncodeToString(sum[:])
	files["blobs/sha256/"+digest] = json.RawMessage(data)
	return blob{Type: kind, Digest: "sha256:" + digest, Size: int64(len(data))}, nil
}

func packImage(target string, files map[string]any, layerBlob blob, content io.Reader) error {
	out, err := os.Create(target)
	if err != nil {
		return err
	}
	defer out.Close()
	archive := &layer{archive: tar.NewWriter(out)}
	for name, value := range files {
		var data bytes.Buffer
		if err := json.NewEncoder(&data).Encode(value); err != nil {
			return err
		}
		text := data.Bytes()
		if strings.HasPrefix(name, "blobs/") {
			text = bytes.TrimSuffix(text, []byte("\n")) // the digest is that of the value alone
		}
		if err := archive.data(name, 0o644, text); err != nil {
			return err
		}
	}
	name := "blobs/sha256/" + strings.TrimPrefix(layerBlob.Digest, "sha256:")
	if err := archive.archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: layerBlob.Size}); err != nil {
		return err
	}
	if _, err := io.Copy(archive.archive, content); err != nil {
		return err
	}
	if err := archive.archive.Close(); err != nil {
		return err
	}
	return out.Close()
}
