package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"time"
	"path/filepath"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

type run struct {
	runs int
	transferMiB int
	lines string
}

func (r *run) runsOf(string, lineKind) int { return r.runs }
func (r *run) add(sc string, s *site, way string, v float64) {
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Printf("%s %-18s %-8s %-10s %.3f   load %s\n", time.Now().Format("15:04:05"), sc, s.client.Nix(), way, v, strings.Fields(string(load))[0])
}

func main() {
	runs := flag.Int("runs", 3, "")
	mib := flag.Int("mib", 1024, "")
	programs := flag.String("programs", "", "")
	sections := flag.String("sections", "trivial,parallel,chain,transfer", "")
	versions := flag.String("versions", "2.26", "")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	lab, err := nixlab.New(nixlab.Options{Progress: func(l string) { fmt.Println(l) }})
	if err != nil { panic(err) }
	defer lab.Close()
	r := &run{runs: *runs, transferMiB: *mib}
	build := exec.Command("go", "build", "-o", *programs, "./test/bench/floorhelper")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil { panic(string(out)) }
	abs, _ := filepath.Abs(*programs)
	for _, v := range strings.Split(*versions, ",") {
		s, err := newSite(ctx, lab, abs, nixlab.Version(v), 1)
		if err != nil { fmt.Println(err); return }
		for _, sec := range strings.Split(*sections, ",") {
			var err error
			switch sec {
			case "transfer": err = r.transfer(ctx, s)
			case "lossy": err = r.lossyTransfer(ctx, s)
			default:
				sc := map[string]scenario{"trivial": trivial(), "parallel": parallel(), "chain": chain()}[sec]
				for _, k := range []lineKind{loopback, rtt20, rtt80} {
					if err = r.latency(ctx, s, k, []scenario{sc}); err != nil { break }
				}
			}
			if err != nil { fmt.Println("ERROR", err); break }
		}
		s.Close()
	}
}
