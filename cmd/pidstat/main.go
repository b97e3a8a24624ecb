// Command pidstat says whether processes of other hosts exist.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/lockerd/lockerd/client"
	"github.com/lockerd/lockerd/getopt"
	"github.com/lockerd/lockerd/pidprobe"
)

// version is set by the build.
var version = "2.0"

// Exit codes. The first three are IPC::Locker's.
const (
	exitUp    = 0
	exitDown  = 1
	exitNone  = 2 // some host did not answer
	exitUsage = 64
)

// atOnce bounds the questions that wait for an answer.
const atOnce = 64

type options struct {
	help, version, silent, debug bool

	host, port string
}

func flags(o *options) *pflag.FlagSet {
	fs := pflag.NewFlagSet("pidstat", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.StringVar(&o.host, "host", "localhost", "`host` of the processes that are given without one")
	fs.StringVar(&o.port, "port", "", "`port` of pidstatd or lockerd there, a number or the name of a service (default the service pidstatd, else 1752)")
	fs.BoolVar(&o.silent, "silent", false, "print nothing: the exit status tells")
	fs.BoolVar(&o.debug, "debug", false, "tell on stderr whom it asks, and how long answers take")
	fs.BoolVar(&o.version, "version", false, "print the version")
	fs.BoolVar(&o.help, "help", false, "print this text")
	return fs
}

const helpHead = `pidstat - say whether processes of other hosts exist

Usage: pidstat [OPTION]... exists [HOST:]PID...

Asks the pidstatd or lockerd of each host, up to five times within five seconds,
and prints a line for each process: HOST:PID up, HOST:PID down, or HOST:PID
host_down if nothing is known because neither answers there. For this host, by its
name or as localhost, neither is needed. A zombie is down.

Options:
`

const helpTail = `
Options may be shortened, may start with one dash, and may follow the command.

Exit status:
   0  all processes exist
   1  some do not
   2  of some it is not known, whatever is known of the others
  64  wrong usage

Examples:
  pidstat exists 3459 host1:4220 host2:9821
  if pidstat --silent exists build7:4711; then echo running; fi
`

// process is one that was asked for.
type process struct {
	host string
	pid  int32
}

func (p process) String() string { return fmt.Sprintf("%s:%d", p.host, p.pid) }

// parseProcess reads [HOST:]PID. The last colon counts: an IPv6 address has more.
func parseProcess(text, host string) (process, error) {
	number := text
	if i := strings.LastIndexByte(text, ':'); i >= 0 {
		number = text[i+1:]
		if i > 0 {
			host = strings.TrimSuffix(strings.TrimPrefix(text[:i], "["), "]")
		}
	}
	pid, err := pidprobe.ParsePID(number)
	if err != nil {
		return process{}, fmt.Errorf("%q: %w", text, err)
	}
	return process{host, pid}, nil
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	var o options
	fs := flags(&o)
	words, err := getopt.Parse(fs, args, true)
	switch {
	case err != nil:
		return misuse(stderr, "%v, see --help", err)
	case o.help:
		fmt.Fprint(stdout, helpHead, fs.FlagUsagesWrapped(80), helpTail)
		return exitUp
	case o.version:
		fmt.Fprintf(stdout, "Version: %s\n", version)
		return exitUp
	case len(words) == 0:
		return misuse(stderr, "No command specified, see --help")
	case words[0] != "exists":
		return misuse(stderr, "Unknown pidstat command: %s", words[0])
	}
	var all []process
	for _, w := range words[1:] {
		p, err := parseProcess(w, o.host)
		if err != nil {
			return misuse(stderr, "%v", err)
		}
		all = append(all, p)
	}
	ctx := context.Background() // a signal simply ends it
	port, err := pidprobe.Port(ctx, o.port)
	if err != nil {
		return misuse(stderr, "--port: %v", err)
	}
	c := &pidprobe.Client{Port: port}
	if slices.ContainsFunc(all, func(p process) bool { return !c.Local(p.host) && net.ParseIP(p.host) == nil }) {
		c.Names = []string{client.FQDN()} // may take a second to find out
	}
	return o.exists(ctx, c, all, stdout, stderr)
}

// outcome is what was learned of a process.
type outcome struct {
	verdict pidprobe.Verdict
	err     error
	took    time.Duration
}

// exists asks for all at the same time, and tells in their order.
func (o *options) exists(ctx context.Context, c *pidprobe.Client, all []process, stdout, stderr io.Writer) int {
	outcomes := make([]chan outcome, len(all))
	for i := range outcomes {
		outcomes[i] = make(chan outcome, 1)
	}
	slots := make(chan struct{}, atOnce)
	go func() {
		for i, p := range all {
			slots <- struct{}{}
			go func() {
				defer func() { <-slots }()
				began := time.Now()
				v, err := c.Exists(ctx, p.host, p.pid)
				outcomes[i] <- outcome{v, err, time.Since(began)}
			}()
		}
	}()
	code := exitUp
	for i, p := range all {
		x := <-outcomes[i]
		word := "host_down"
		switch {
		case x.err == nil && x.verdict == pidprobe.Alive:
			word = "up"
		case x.err == nil && x.verdict == pidprobe.Dead:
			word = "down"
			code = max(code, exitDown)
		default:
			code = exitNone
		}
		if o.debug {
			fmt.Fprintf(stderr, "pidstat: %v is %v after %v, error: %v\n", p, x.verdict, x.took, x.err)
		} else if errors.Is(x.err, pidprobe.ErrNoHost) && !o.silent {
			fmt.Fprintf(stderr, "%%Error: Can't find host %s\n", p.host)
		}
		if !o.silent {
			fmt.Fprintf(stdout, "%v %s\n", p, word)
		}
	}
	return code
}

func misuse(w io.Writer, format string, args ...any) int {
	fmt.Fprintf(w, "%%Error: "+format+"\n", args...)
	return exitUsage
}
