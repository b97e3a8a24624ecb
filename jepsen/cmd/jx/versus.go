package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"github.com/lockerd/lockerd/jepsen/run"
	"github.com/lockerd/lockerd/jepsen/versus"
)

const versusUsage = `Usage: jx versus counter|death [OPTION]...

Puts lockersh beside "etcdctl lock": three servers of either on loopback, one after the
other, on the same disk. Where etcd and etcdctl are not installed, lockersh is alone.

  counter    processes add 1 to a number in a file; some are stopped for longer than
             any lease between their read and their write. Counts lost updates.
  death      holders are killed. Takes the time until the next one's command runs.

jx versus counter --help and jx versus death --help tell the options.

Exit status: 0 if lockersh lost nothing and let no two run at a time, 1 if it did,
3 if the test saw nothing, or could not have.

Examples:
  jx versus counter
  jx versus counter --ttl 10s --pauses 3 --json
  jx versus death --runs 20 --ttl 2s,10s
`

// versusConfig is what the program inside the sandbox is to do: one of the two tests.
type versusConfig struct {
	Programs versus.Programs
	Counter  *versus.Counter
	Death    *versus.Death
	JSON     bool
}

const (
	versusVar    = "JX_VERSUS" // carries versusConfig
	versusInside = "versus-inside"
	versusPrefix = run.Prefix + "versus-" // of directories
)

func cmdVersus(ctx context.Context, args []string, out io.Writer) (int, error) {
	if len(args) == 0 {
		return exitUsage, usageError{errors.New("counter or death? See jx versus --help")}
	}
	switch args[0] {
	case "--help", "-h", "help":
		fmt.Fprint(out, versusUsage)
		return exitPass, nil
	case "counter":
		return versusCounter(ctx, args[1:], out)
	case "death":
		return versusDeath(ctx, args[1:], out)
	}
	return exitUsage, usageError{fmt.Errorf("no test %q: counter or death", args[0])}
}

func versusCounter(ctx context.Context, args []string, out io.Writer) (int, error) {
	fs := newFlags("versus counter", "[OPTION]...", out)
	var t versus.Counter
	fs.IntVar(&t.Processes, "processes", 8, "`number` of processes that add at a time")
	fs.IntVar(&t.Times, "times", 20, "`number` of times that each adds 1")
	fs.IntVar(&t.Pauses, "pauses", 5, "stop this `many` holders, spread over the test")
	fs.DurationVar(&t.Pause, "pause", 0, "for so `long`; default: two leases and two seconds")
	fs.DurationVar(&t.TTL, "ttl", 2*time.Second, "`time` of etcdctl's lease, its --ttl")
	return versusRun(ctx, fs, args, out, func(c *versusConfig) error {
		t = t.WithDefaults()
		c.Counter = &t
		return t.Validate()
	})
}

func versusDeath(ctx context.Context, args []string, out io.Writer) (int, error) {
	fs := newFlags("versus death", "[OPTION]...", out)
	var t versus.Death
	fs.IntVar(&t.Runs, "runs", 20, "kill this `many` holders of each kind")
	fs.DurationSliceVar(&t.TTLs, "ttl", []time.Duration{2 * time.Second}, "`time` of etcdctl's lease, its --ttl; several with commas between, one after the other")
	return versusRun(ctx, fs, args, out, func(c *versusConfig) error {
		c.Death = &t
		return t.Validate()
	})
}

// versusRun reads the command line, and does a test in a sandbox: the kernel ends all
// of its processes with it.
func versusRun(ctx context.Context, fs *pflag.FlagSet, args []string, out io.Writer, complete func(*versusConfig) error) (int, error) {
	var c versusConfig
	p := &c.Programs
	fs.StringVar(&p.Lockerd, "lockerd", "", "test this `program`; default: built from this source tree, like lockersh")
	fs.StringVar(&p.Lockersh, "lockersh", "", "test this `program`")
	fs.StringVar(&p.Etcd, "etcd", "", "compare with this `program`; default: the one in PATH, like etcdctl")
	fs.StringVar(&p.Etcdctl, "etcdctl", "", "compare with this `program`")
	fs.StringVar(&p.Dir, "dir", os.TempDir(), "`directory` for a temporary one with all data, on a real disk")
	fs.BoolVar(&c.JSON, "json", false, "print the result as JSON")
	if err := parse(fs, args, 0, 0); err != nil {
		return exitPass, err
	}
	if err := complete(&c); err != nil {
		return exitUsage, usageError{err}
	}
	var err error
	if p.Dir, err = os.MkdirTemp(p.Dir, versusPrefix); err != nil {
		return exitHarness, err
	}
	defer os.RemoveAll(p.Dir)
	if err := versusPrograms(ctx, p); err != nil {
		return exitHarness, err
	}
	b, err := json.Marshal(c)
	if err != nil {
		return exitHarness, err
	}
	if err := os.Setenv(versusVar, string(b)); err != nil {
		return exitHarness, err
	}
	code, err := run.Sandbox(out, versusInside)
	if err != nil {
		return exitHarness, err
	}
	return code, nil
}

// versusPrograms finds or builds what is to be run.
func versusPrograms(ctx context.Context, p *versus.Programs) error {
	for _, b := range []struct {
		path *string
		name string
	}{{&p.Lockerd, "lockerd"}, {&p.Lockersh, "lockersh"}} {
		if *b.path != "" {
			continue
		}
		*b.path = filepath.Join(p.Dir, b.name)
		// As it is released.
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", *b.path, "github.com/lockerd/lockerd/cmd/"+b.name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if said, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w: %s; or give a --%s", b.name, err, said, b.name)
		}
	}
	for _, b := range []struct {
		path *string
		name string
	}{{&p.Etcd, "etcd"}, {&p.Etcdctl, "etcdctl"}} {
		if *b.path == "" {
			*b.path, _ = exec.LookPath(b.name) // none is none
		}
	}
	var err error
	if p.Self, err = os.Executable(); err != nil {
		return err
	}
	for _, path := range []*string{&p.Self, &p.Lockerd, &p.Lockersh, &p.Etcd, &p.Etcdctl, &p.Dir} {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
		if _, err := os.Stat(*path); err != nil {
			return err
		}
	}
	return nil
}

// cmdVersusInside does the test that the program outside has prepared.
func cmdVersusInside(ctx context.Context, _ []string, out io.Writer) (int, error) {
	var c versusConfig
	if err := json.Unmarshal([]byte(os.Getenv(versusVar)), &c); err != nil {
		return exitHarness, fmt.Errorf("%s: %w", versusVar, err)
	}
	if _, _, err := run.Enter(); err != nil {
		return exitHarness, err
	}
	if err := versus.Prepare(); err != nil {
		return exitHarness, err
	}
	if c.Counter != nil {
		ctx, cancel := context.WithTimeout(ctx, c.Counter.Time())
		defer cancel()
		r, err := c.Counter.Run(ctx, c.Programs)
		return versusReport(r, err, c.JSON, out)
	}
	ctx, cancel := context.WithTimeout(ctx, c.Death.Time())
	defer cancel()
	r, err := c.Death.Run(ctx, c.Programs)
	return versusReport(r, err, c.JSON, out)
}

// versusReport prints what came of a test, and turns it into an exit status.
func versusReport(r interface {
	Print(io.Writer) error
	Verdict() (versus.Verdict, string)
}, err error, asJSON bool, out io.Writer,
) (int, error) {
	if err != nil {
		return exitHarness, err
	}
	verdict, why := r.Verdict()
	if asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		err = e.Encode(map[string]any{"result": r, "verdict": why})
	} else {
		err = r.Print(out)
	}
	if err != nil {
		return exitHarness, err
	}
	return map[versus.Verdict]int{versus.Pass: exitPass, versus.Fail: exitFail, versus.Undecided: exitUndecided}[verdict], nil
}

// holderOf is a command that is run by the lock clients that are compared.
func holderOf(f func(args []string) error) command {
	return func(_ context.Context, args []string, _ io.Writer) (int, error) {
		if err := f(args); err != nil {
			return exitHarness, err
		}
		return exitPass, nil
	}
}
