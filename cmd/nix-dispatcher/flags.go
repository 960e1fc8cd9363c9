// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/dispatch/clientdir"
)

// defaultVolume is the directory shared with clients. Its path is in the URIs of
// the machines file, so it is short.
const defaultVolume = "/nix-dispatch"

// options are the flags.
type options struct {
	builders     string
	keysDir      string
	identityFile string
	knownHosts   string
	user         string

	volume     string
	clientPath string
	helper     string
	maxLines   int

	spoolDir      string
	spoolSize     byteSize
	spooledOutput byteSize

	openTimeout     time.Duration
	locateTimeout   time.Duration
	shutdownTimeout time.Duration

	metricsAddress string

	logLevel  slog.Level
	logFormat string
}

// parseFlags reads the flags of the serve command.
func parseFlags(args []string) (options, error) {
	var o options
	flags := o.flagSet()
	if err := parse(flags, args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	return o, o.check()
}

// parse parses args and shows the flags to who asks for help. Mistakes are
// reported by the caller alone.
func parse(flags *flag.FlagSet, args []string) error {
	flags.SetOutput(io.Discard)
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		flags.SetOutput(os.Stdout)
		flags.Usage()
	}
	return err
}

// flagSet returns the flags with their defaults, to be parsed into o.
func (o *options) flagSet() *flag.FlagSet {
	o.spoolSize, o.spooledOutput = 10<<30, 256<<20
	flags := flag.NewFlagSet("nix-dispatcher", flag.ContinueOnError)
	flags.StringVar(&o.builders, "builders", "/etc/nix-machines/builders.json", "`file` with the builders: builders.json of the operator, or a machines file; watched")
	flags.StringVar(&o.keysDir, "keys-dir", "/etc/nix-keys", "`directory` with a directory for each credential, holding ssh-privatekey")
	flags.StringVar(&o.identityFile, "identity-file", "", "private key `file` for builders of a machines file whose lines name none")
	flags.StringVar(&o.knownHosts, "known-hosts", "", "known_hosts `file` for builders without a host key of their own")
	flags.StringVar(&o.user, "user", "root", "SSH `user` for lines of a machines file that name none")

	flags.StringVar(&o.volume, "volume", defaultVolume, "`directory` shared with the clients")
	flags.StringVar(&o.clientPath, "client-path", "", "`path` of the shared directory as clients see it (default: that of --volume)")
	flags.StringVar(&o.helper, "helper", besideSelf(clientdir.HelperName), "helper program `file` to install for the clients")
	flags.IntVar(&o.maxLines, "max-lines", 512, "most `lines` of the clients' machines file")

	flags.StringVar(&o.spoolDir, "spool-dir", "/var/spool/nix-dispatcher", "`directory` of the spool, used by nobody else; emptied at start")
	flags.Var(&o.spoolSize, "spool-max-size", "most `bytes` in the spool, with a suffix such as Gi")
	flags.Var(&o.spooledOutput, "spooled-output-max-size", "outputs with more `bytes` stream from their builder instead of being spooled")

	flags.DurationVar(&o.openTimeout, "connect-timeout", 15*time.Second, "longest `time` to connect to a builder, and to open a session there")
	flags.DurationVar(&o.locateTimeout, "locate-timeout", 2*time.Second, "longest `time` to ask builders what they have while a client waits")
	flags.DurationVar(&o.shutdownTimeout, "shutdown-timeout", 25*time.Second, "longest `time` to let builds finish after SIGTERM")

	flags.StringVar(&o.metricsAddress, "metrics-address", "", "`address` to serve /metrics on, such as :9464; empty for nowhere")

	flags.TextVar(&o.logLevel, "log-level", slog.LevelInfo, "least `level` to log: debug, info, warn, error")
	flags.StringVar(&o.logFormat, "log-format", "text", "`format` of the log: text or json")
	return flags
}

func (o options) check() error {
	switch {
	case o.logFormat != "text" && o.logFormat != "json":
		return fmt.Errorf("--log-format is %q: it must be text or json", o.logFormat)
	case o.maxLines < 1:
		return errors.New("--max-lines must be at least 1")
	case o.openTimeout <= 0 || o.locateTimeout <= 0 || o.shutdownTimeout < 0:
		return errors.New("timeouts must be positive")
	case o.clientPath != "" && !filepath.IsAbs(o.clientPath) || o.clientPath == "" && !filepath.IsAbs(o.volume):
		return errors.New("the shared directory needs an absolute path: clients are given it")
	}
	return nil
}

// logger returns the logger that the flags ask for.
func (o options) logger() *slog.Logger {
	handler := &slog.HandlerOptions{Level: o.logLevel}
	if o.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, handler))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, handler))
}

// besideSelf is a file in the directory of this program.
func besideSelf(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
}

// byteSize is a flag for a number of bytes such as 512Mi.
type byteSize int64

var suffixes = []struct {
	suffix string
	factor int64
}{{"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}, {"Ti", 1 << 40}}

// String implements flag.Value.
func (b *byteSize) String() string {
	for _, s := range []int{3, 2, 1, 0} {
		if f := suffixes[s].factor; *b != 0 && int64(*b)%f == 0 {
			return strconv.FormatInt(int64(*b)/f, 10) + suffixes[s].suffix
		}
	}
	return strconv.FormatInt(int64(*b), 10)
}

// Set implements flag.Value.
func (b *byteSize) Set(text string) error {
	factor := int64(1)
	for _, s := range suffixes {
		if number, ok := strings.CutSuffix(text, s.suffix); ok {
			text, factor = number, s.factor
		}
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n <= 0 || n > math.MaxInt64/factor {
		return errors.New("must be a positive number, with Ki, Mi, Gi or Ti behind it if you like")
	}
	*b = byteSize(n * factor)
	return nil
}
