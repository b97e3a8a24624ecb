// Command lockbench measures a lock cluster: how much it does a second, how long
// its clients stand still when the leader dies, how soon the lock of a dead process
// is granted to the next, and whether the cluster keeps its leader on a busy machine.
//
// It starts the servers it measures, real processes with real disks, and removes
// them afterwards. It uses the bare line protocol, not package client.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockerd/lockerd/systest/farm"
)

// version is set by the linker in releases.
var version = "2.0"

// Exit codes; 64 and 69 are those of sysexits(3).
const (
	exitOK     = 0
	exitMissed = 1
	exitUsage  = 64
	exitFailed = 69
	exitSignal = 128 + int(syscall.SIGINT)
)

var (
	// errMissed is wrapped when a goal is missed.
	errMissed = errors.New("goal missed")

	// errFailed is wrapped when a measurement could not be made.
	errFailed = errors.New("no measurement")

	errInterrupted = errors.New("interrupted")
)

func main() {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		// Further signals change nothing: nothing that follows takes long, and the
		// kernel may tell us more than once that our parent has died.
		<-signals
		cancel(errInterrupted)
	}()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the program. It returns its exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot(stdout, stderr)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	if inside := (insideError{}); errors.As(err, &inside) {
		return inside.code // it has said why itself
	}
	if errors.Is(context.Cause(ctx), errInterrupted) {
		fmt.Fprintf(stderr, "lockbench: %v\n", errInterrupted)
		return exitSignal
	}
	fmt.Fprintf(stderr, "lockbench: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	switch {
	case errors.Is(err, errMissed):
		return exitMissed
	case errors.Is(err, errFailed):
		return exitFailed
	}
	return exitUsage // all that is left comes from the command line
}

// program is what the commands share.
type program struct {
	out, err io.Writer
	lockerd  string
	json     bool
	noGoals  bool
}

func newRoot(stdout, stderr io.Writer) *cobra.Command {
	p := &program{out: stdout, err: stderr}
	root := &cobra.Command{
		Use:   "lockbench",
		Short: "Measure a lock cluster",
		Long: `lockbench measures a lock cluster. It starts the servers by itself, on loopback
with their data in a temporary directory, and removes them afterwards.

Exit status:
   0  measured, and all goals are met
   1  measured, and a goal is missed (failover, deaths, elections)
  64  wrong option or argument
  69  could not measure: a server did not start, or a client got no answer
 130  interrupted`,
		Example: `  lockbench pairs --servers 3 --clients 256
  lockbench pairs --clients 64 --reconnect --json
  lockbench handoff --servers 3 --waiters 1000
  lockbench failover --runs 20
  lockbench failover --cut --runs 5
  lockbench deaths --runs 200
  lockbench elections --for 60s
  lockbench pairs --connect node1:1751,node2:1751 --clients 16`,
		Version:           version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		Args:              cobra.NoArgs,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		RunE: func(*cobra.Command, []string) error {
			return errors.New("which measurement? see lockbench --help")
		},
	}
	root.SetVersionTemplate("Version: {{.Version}}\n")
	f := root.PersistentFlags()
	f.StringVar(&p.lockerd, "lockerd", "", "`path` of lockerd (default: beside lockbench)")
	f.BoolVar(&p.json, "json", false, "print JSON, for programs")
	root.AddCommand(p.pairsCommand(), p.handoffCommand(), p.failoverCommand(), p.deathsCommand(), p.electionsCommand(),
		spinCommand(), idleCommand())
	return root
}

// Bounds of the options.
const (
	maxClients  = 200_000
	maxServers  = 7
	maxTime     = time.Hour
	maxPipeline = 512
	maxRuns     = 1000
)

// target is what is measured: servers of our own, or given ones.
type target struct {
	servers int
	connect []string
}

func (t *target) flags(c *cobra.Command) {
	c.Flags().IntVar(&t.servers, "servers", 1, "start this `many` servers")
	c.Flags().StringSliceVar(&t.connect, "connect", nil, "measure these servers, `host:port,...`, instead of own ones")
	c.MarkFlagsMutuallyExclusive("servers", "connect")
}

func (t *target) validate() error {
	if len(t.connect) > 0 {
		t.servers = len(t.connect)
	}
	return inRange("servers", t.servers, 1, maxServers)
}

// open starts servers, if it is to be own ones, and returns the addresses of all
// client ports. The caller closes.
func (t *target) open(ctx context.Context, p *program) (addrs []string, closing func() error, err error) {
	if len(t.connect) > 0 {
		return t.connect, func() error { return nil }, nil
	}
	f, err := farm.New(ctx, farm.Options{Binary: p.lockerd, Servers: t.servers})
	if err != nil {
		return nil, nil, failed(err)
	}
	for _, n := range f.Nodes {
		addrs = append(addrs, n.Client())
	}
	return addrs, f.Close, nil
}

// failed marks an error that no option is to blame for.
func failed(err error) error {
	if err == nil || errors.Is(err, errMissed) {
		return err
	}
	return fmt.Errorf("%w: %w", errFailed, err)
}

func inRange[T int | time.Duration](name string, v, low, high T) error {
	if v < low || v > high {
		return fmt.Errorf("--%s %v: from %v to %v are possible", name, v, low, high)
	}
	return nil
}
