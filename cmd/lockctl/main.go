// Command lockctl shows and administers a lock cluster, by way of any node's
// HTTP port.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"os/user"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// version is set by the linker in releases.
var version = "2.0"

// Exit codes; 64 and 69 are those of sysexits(3).
const (
	exitOK      = 0
	exitRefused = 1
	exitUsage   = 64
	exitSilent  = 69
)

var (
	// errRefused is wrapped by errors that are an answer: it will not be done, or
	// there was nothing to do.
	errRefused = errors.New("refused")

	// errNoAnswer is wrapped by errors that say nothing about the cluster's state.
	errNoAnswer = errors.New("no answer")
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the program. It returns its exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot(stdout)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(stderr, "lockctl: %v\n", err)
	switch {
	case errors.Is(err, errRefused):
		return exitRefused
	case errors.Is(err, errNoAnswer):
		return exitSilent
	}
	return exitUsage // all that is left comes from the command line
}

// program is what the commands share.
type program struct {
	out     io.Writer
	addr    string
	timeout time.Duration
	json    bool
}

func newRoot(stdout io.Writer) *cobra.Command {
	p := &program{out: stdout}
	root := &cobra.Command{
		Use:   "lockctl",
		Short: "Show and administer a lock cluster",
		Long: `lockctl shows and administers a lock cluster, by way of any node's HTTP port.

Exit status:
   0  done
   1  refused, or nothing to do
  64  wrong option or argument
  69  no answer: the node cannot be reached, or the cluster has no leader`,
		Example: `  lockctl status
  lockctl locks --lock build
  lockctl break build --fence 4711
  lockctl watch --json | jq .
  lockctl transfer lock2
  lockctl remove lock3
  lockctl --addr node2:1755 members`,
		Version:           version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		Args:              cobra.NoArgs,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		RunE: func(*cobra.Command, []string) error {
			return errors.New("which command? see lockctl --help")
		},
	}
	root.SetVersionTemplate("Version: {{.Version}}\n")
	addr := os.Getenv("LOCKERD_HTTP")
	if addr == "" || addr == "off" {
		addr = "127.0.0.1:1755"
	}
	f := root.PersistentFlags()
	f.StringVar(&p.addr, "addr", addr, "HTTP `address` of a node; $LOCKERD_HTTP sets the default")
	f.DurationVar(&p.timeout, "timeout", 20*time.Second, "longest `time` to wait for an answer")
	f.BoolVar(&p.json, "json", false, "print JSON, for programs")
	root.AddCommand(p.statusCommand(), p.membersCommand(), p.locksCommand(), p.breakCommand(), p.watchCommand(), p.transferCommand(), p.removeCommand())
	return root
}

// self is who breaks a lock if --by does not say: user@host.
func self() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	host, err := os.Hostname()
	if err != nil {
		return name
	}
	return name + "@" + host
}
