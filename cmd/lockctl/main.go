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

	"github.com/lockerd/lockerd/freezer/checkpoint"
	"github.com/lockerd/lockerd/getopt"
	"github.com/lockerd/lockerd/job"
)

// version is set by the linker in releases.
var version = "2.0"

// Exit codes; 64, 69 and 74 are those of sysexits(3).
const (
	exitOK      = 0
	exitRefused = 1
	exitUsage   = 64
	exitSilent  = 69
	exitOutput  = 74
	exitThawed  = 76
)

var (
	// errRefused is wrapped by errors that are an answer: it will not be done, or
	// there was nothing to do.
	errRefused = errors.New("refused")

	// errNoAnswer is wrapped by errors that say nothing about the cluster's state.
	errNoAnswer = errors.New("no answer")

	// errThawed is wrapped by errors of freezes that ended before their commands did.
	errThawed = errors.New("thawed too early")
)

// exitStatus is the status of a command that lockctl has run, or that of a signal:
// there is nothing to say about it.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// interrupted is a signal that came before anything was frozen, or has ended the command.
type interrupted struct{ syscall.Signal }

func (i interrupted) Error() string { return i.String() }

// startError says why the command could not be run.
type startError struct{ error }

func main() {
	job.AtGate()
	checkpoint.AtStage()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the program. It returns its exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	out := &getopt.Output{Writer: stdout}
	root := newRoot(out, stderr)
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		err = out.Err
	}
	if err == nil {
		return exitOK
	}
	var status exitStatus
	if errors.As(err, &status) {
		return int(status)
	}
	var stopped interrupted
	if errors.As(err, &stopped) {
		if stopped.Signal == syscall.SIGINT && job.HasTerminal() {
			job.Interrupt()
		}
		return 128 + int(stopped.Signal)
	}
	fmt.Fprintf(stderr, "lockctl: %v\n", err)
	var start startError
	switch {
	case errors.As(err, &start):
		return job.StartCode(start.error)
	case errors.Is(err, errThawed):
		return exitThawed
	case errors.Is(err, errRefused):
		return exitRefused
	case errors.Is(err, errNoAnswer):
		return exitSilent
	case errors.Is(err, getopt.ErrOutput):
		return exitOutput
	}
	return exitUsage // all that is left comes from the command line
}

// program is what the commands share.
type program struct {
	out     *getopt.Output
	errs    io.Writer // what lockctl itself has to say while a command runs
	addr    string
	admin   string // the socket for those who may freeze
	socket  string // go by this one, and not by addr
	timeout time.Duration
	json    bool
}

func newRoot(stdout *getopt.Output, stderr io.Writer) *cobra.Command {
	p := &program{out: stdout, errs: stderr}
	root := &cobra.Command{
		Use:   "lockctl",
		Short: "Show and administer a lock cluster",
		Long: `lockctl shows and administers a lock cluster, by way of any node's HTTP port; freezing
goes by the admin socket of a node on this host.

Exit status: with a command to run, as in freeze and fsfreeze, the command's own, 128+n if
signal n ended it; and
   0  done
   1  refused, or nothing to do; the command was not run
  64  wrong option or argument
  69  no answer: the node cannot be reached, or the cluster has no leader
  74  the output cannot be written; a freeze whose number was to be printed is taken back
  76  a freeze ended before its command had, which was ended because of that; or before
      thaw or fsthaw was to end it
 126  the command cannot be executed
 127  there is no such command`,
		Example: `  lockctl status
  lockctl locks --lock build
  lockctl break build --fence 4711
  lockctl watch --json | jq .
  lockctl transfer lock2
  lockctl remove lock3
  lockctl fsfreeze --node db1,db2,db3 /data -- ssh array snapshot vol7
  lockctl freeze --node n3 --tree 4711 -- ssh n3 gcore 4711
  lockctl checkpoint --node n1 --lock render --suspend --file /shared/render.ckpt
  lockctl restart --node n2 --file /shared/render.ckpt
  lockctl orders
  lockctl --addr node2:1755 members
  lockctl doctor`,
		Version:           version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		Args:              cobra.NoArgs,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		RunE: func(*cobra.Command, []string) error {
			return errors.New("which command? see lockctl --help")
		},
	}
	root.SetFlagErrorFunc(flagError)
	root.SetVersionTemplate("Version: {{.Version}}\n")
	addr := os.Getenv("LOCKERD_HTTP")
	if addr == "" || addr == "off" {
		addr = "127.0.0.1:1755"
	}
	f := root.PersistentFlags()
	f.StringVar(&p.addr, "addr", addr, "HTTP `address` of a node; $LOCKERD_HTTP sets the default")
	f.StringVar(&p.admin, "admin", adminSocket(os.Geteuid(), os.Getenv), "admin `socket` of a node on this host; $LOCKERD_ADMIN sets the default")
	f.DurationVar(&p.timeout, "timeout", 20*time.Second, "longest `time` to wait for an answer")
	f.BoolVar(&p.json, "json", false, "print JSON, for programs")
	root.PersistentPreRun = func(cmd *cobra.Command, _ []string) {
		if cmd.Flags().Changed("admin") {
			p.socket = p.admin
		}
	}
	root.AddCommand(p.checkpointCommand(), p.restartCommand())
	root.AddCommand(p.freezeCommand(), p.fsfreezeCommand(), p.thawCommand(), p.fsthawCommand(), p.ordersCommand(), p.doctorCommand())
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
