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
	"regexp"
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

	openTimeout     duration
	locateTimeout   duration
	shutdownTimeout duration

	limits limits

	metricsAddress string
	statusAddress  string

	logLevel  level
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
	return o, errors.Join(o.check(), o.limits.check())
}

// invalidValue is how package flag begins its words about a value.
var invalidValue = regexp.MustCompile(`^invalid value "(.*)" for flag -([a-z-]+): `)

// parse parses args and shows the flags to who asks for help. Mistakes are
// reported by the caller alone.
func parse(flags *flag.FlagSet, args []string) error {
	flags.SetOutput(io.Discard)
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		flags.SetOutput(os.Stdout)
		flags.Usage()
		return err
	}
	if err != nil {
		text := invalidValue.ReplaceAllString(err.Error(), "--$2=$1: ")
		return fmt.Errorf("%s (see %s --help)", strings.Replace(text, ": parse error", ": must be a whole number", 1), flags.Name())
	}
	return nil
}

// usage is what help says above the flags.
const usage = `Gives the builds of Nix clients beside it to remote builders.

  nix-dispatcher [serve] [flags]         serve until SIGTERM
  nix-dispatcher ready [--volume=DIR]    succeed if a dispatcher serves the directory
  nix-dispatcher version                 print the version

Flags of serve:
`

// flagSet returns the flags with their defaults, to be parsed into o.
func (o *options) flagSet() *flag.FlagSet {
	o.spoolSize, o.spooledOutput = 10<<30, 256<<20
	flags := flag.NewFlagSet("nix-dispatcher", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
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

	o.openTimeout, o.locateTimeout, o.shutdownTimeout = duration(15*time.Second), duration(time.Second), duration(25*time.Second)
	flags.Var(&o.openTimeout, "connect-timeout", "longest `time` to connect to a builder, and to open a session there")
	flags.Var(&o.locateTimeout, "locate-timeout", "longest `time` to ask builders what they have while a client waits")
	flags.Var(&o.shutdownTimeout, "shutdown-timeout", "longest `time` to let builds finish after SIGTERM")

	o.limits.register(flags)

	flags.StringVar(&o.metricsAddress, "metrics-address", "", "`address` to serve /metrics on, such as :9464; empty for nowhere")
	flags.StringVar(&o.statusAddress, "status-address", "", "loopback `address` to serve the status page on, such as 127.0.0.1:9465; empty for nowhere")

	flags.Var(&o.logLevel, "log-level", "least `level` to log: debug, info (the default), warn, error")
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
	case o.statusAddress != "":
		return checkLoopback(o.statusAddress)
	}
	return nil
}

// checkFiles fails if something that must be there before the start is not. Builders
// and keys may come later.
func (o options) checkFiles() error {
	switch info, err := os.Stat(o.volume); {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("--volume: %s does not exist: create it or set --volume", o.volume)
	case err != nil:
		return fmt.Errorf("--volume: %w", err)
	case !info.IsDir():
		return fmt.Errorf("--volume: %s is not a directory", o.volume)
	}
	for _, named := range []struct{ flag, file string }{{"--identity-file", o.identityFile}, {"--known-hosts", o.knownHosts}} {
		if named.file == "" {
			continue
		}
		file, err := os.Open(named.file)
		if err != nil {
			return fmt.Errorf("%s: %w", named.flag, err)
		}
		file.Close()
	}
	return nil
}

// besideSelf is a file in the directory of this program.
func besideSelf(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
}

// duration is a flag for a time such as 15s.
type duration time.Duration

// String implements flag.Value.
func (d *duration) String() string { return time.Duration(*d).String() }

// Set implements flag.Value.
func (d *duration) Set(text string) error {
	parsed, err := time.ParseDuration(text)
	if _, bare := strconv.ParseFloat(text, 64); err != nil && bare == nil {
		return fmt.Errorf("needs a unit, such as %ss", text)
	}
	if err != nil {
		return errors.New("must be a time such as 15s, 500ms or 1m30s")
	}
	*d = duration(parsed)
	return nil
}

// level is a flag for the least level to log.
type level slog.Level

var levels = map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}

// String implements flag.Value.
func (l *level) String() string { return strings.ToLower(slog.Level(*l).String()) }

// Set implements flag.Value.
func (l *level) Set(text string) error {
	found, ok := levels[strings.ToLower(text)]
	if !ok {
		return errors.New("must be debug, info, warn or error")
	}
	*l = level(found)
	return nil
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
