package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/lockerd/lockerd/freezer"
)

// options are the settings of a node, from wherever they came.
type options struct {
	help, version, debug, nofork, fork bool

	host, port, path string
	pidstat          string
	dataDir, name    string
	agent            bool
	expect           int
	join             []string
	peer, gossip     string
	http, advertise  string
	insecure         bool
	config           string

	executors, protect []string
	hooks, admin       string
	hookTimeout        time.Duration

	set map[string]string // where each option that was given came from, for messages
}

// off is the value that turns a port off.
const off = "off"

// flags declares every option. Each is also a key of the configuration file and
// a variable LOCKERD_NAME, but for those in flagOnly.
func flags(o *options) *pflag.FlagSet {
	fs := pflag.NewFlagSet("lockerd", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.SetOutput(io.Discard)
	fs.StringVar(&o.host, "host", "localhost", "`address` to serve clients on; 0.0.0.0 for all")
	fs.StringVar(&o.port, "port", "", "`port` to serve clients on, a number or a service name (default $IPCLOCKER_PORT, the service lockerd, or 1751)")
	fs.StringVar(&o.path, "path", "", "serve clients on this UNIX `socket` instead of a port")
	fs.StringVar(&o.pidstat, "pidstat-port", "", "UDP `port` of --host on which to tell other hosts which processes of this one live, as pidstatd does, and on which to ask theirs: a number, a service name, or 0 for neither (default the service pidstatd, or 1752)")
	fs.StringVar(&o.dataDir, "data-dir", "", "`directory` of the node's log and identity (default /var/lib/lockerd for root, else $XDG_STATE_HOME/lockerd or ~/.local/state/lockerd; with --agent the same and -agent, for a few lines about where it ran)")
	fs.StringVar(&o.name, "name", "", "`name` of the node, its own in the cluster (default the host's name)")
	fs.BoolVar(&o.agent, "agent", false, "serve clients without a vote and without a log, through the servers of --join")
	fs.IntVar(&o.expect, "bootstrap-expect", 0, "found a cluster as soon as this `number` of servers has met; 1 without --join")
	fs.StringSliceVar(&o.join, "join", nil, "gossip `addresses` of other nodes, host:port[,...]; one that answers is enough")
	fs.StringVar(&o.peer, "peer", "127.0.0.1:1753", "`address` for the other nodes")
	fs.StringVar(&o.gossip, "gossip", "127.0.0.1:1754", "`address` for gossip, UDP and TCP, or off for a cluster of one")
	fs.StringVar(&o.http, "http", "127.0.0.1:1755", "`address` of the status page, the API and metrics, or off")
	fs.StringVar(&o.advertise, "advertise", "", "host `name` or address under which other nodes reach this one (default that of --peer)")
	fs.BoolVar(&o.insecure, "insecure", false, "let peers and gossip leave this host without encryption or a key")
	fs.StringSliceVar(&o.executors, "executors", nil, "let orders of the cluster act on this host: freeze `procs` or fs (processes, file systems), checkpoint jobs; takes root")
	fs.StringVar(&o.hooks, "hooks", "", "`directory` of programs that are run with freeze before a freeze and with thaw after it")
	fs.DurationVar(&o.hookTimeout, "hook-timeout", freezer.DefaultHookTimeout, "how long one of them may take")
	fs.StringSliceVar(&o.protect, "protect", nil, "`paths` whose file systems are never frozen, beside those that never are")
	fs.StringVar(&o.admin, "admin", "", "`socket` for those who may order a freeze, root and the user that lockerd runs as, or off (default admin.sock in $RUNTIME_DIRECTORY, or for root in /run/lockerd, else in $XDG_RUNTIME_DIR/lockerd)")
	fs.StringVar(&o.config, "config", "", "read options from this TOML `file`")
	fs.BoolVar(&o.debug, "debug", false, "log every step")
	fs.BoolVar(&o.nofork, "nofork", false, "accepted for old command lines: lockerd never forks")
	fs.BoolVar(&o.fork, "fork", false, "accepted likewise")
	fs.BoolVar(&o.version, "version", false, "print the version")
	fs.BoolVar(&o.help, "help", false, "print this text")
	_ = fs.MarkHidden("fork")
	return fs
}

// flagOnly are the options that make no sense in a file or in the environment.
var flagOnly = map[string]bool{"help": true, "version": true, "fork": true, "nofork": true}

// usageError is a mistake in what the node was told.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// parse reads the command line, then LOCKERD_* variables, then the file, each
// filling in what those before it left open.
func parse(args []string, getenv func(string) string) (*options, *pflag.FlagSet, error) {
	o := &options{set: map[string]string{}}
	fs := flags(o)
	args, err := expand(fs, args)
	if err != nil {
		return nil, nil, usageError{err}
	}
	if err := fs.Parse(args); err != nil {
		return nil, nil, usageError{err}
	}
	if o.help || o.version {
		return o, fs, nil
	}
	if fs.NArg() > 0 {
		return nil, nil, usagef("%q is no option: lockerd takes no other arguments", fs.Arg(0))
	}
	fs.Visit(func(f *pflag.Flag) { o.set[f.Name] = "--" + f.Name })
	if err := fromEnvironment(o, fs, getenv); err != nil {
		return nil, nil, err
	}
	if o.config != "" {
		if err := fromFile(o, fs, o.config); err != nil {
			return nil, nil, err
		}
	}
	if v := getenv("IPCLOCKER_PORT"); v != "" && o.set["port"] == "" && o.set["path"] == "" {
		o.port, o.set["port"] = v, "IPCLOCKER_PORT"
	}
	return o, fs, o.complete(getenv)
}

func fromEnvironment(o *options, fs *pflag.FlagSet, getenv func(string) string) error {
	var err error
	fs.VisitAll(func(f *pflag.Flag) {
		name := "LOCKERD_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		v := getenv(name)
		if flagOnly[f.Name] || o.set[f.Name] != "" || v == "" || err != nil {
			return
		}
		if e := fs.Set(f.Name, v); e != nil {
			err = usagef("%s=%q in the environment: %s", name, v, reason(e))
			return
		}
		o.set[f.Name] = name
	})
	return err
}

// reason strips pflag's repetition of the option's name off an error.
func reason(err error) string {
	for e := err; e != nil; e = errors.Unwrap(e) {
		err = e
	}
	return strings.TrimPrefix(err.Error(), "strconv.")
}

// complete fills in the defaults that depend on the surroundings.
func (o *options) complete(getenv func(string) string) error {
	if o.path == "" && strings.Contains(o.port, "/") {
		o.path = o.port // IPC::Locker documents that a path may be given as the port
	}
	if o.name == "" {
		h, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("learn this host's name: %w (give the node one with --name)", err)
		}
		o.name = h
	}
	if o.dataDir == "" {
		o.dataDir = stateDir(os.Geteuid(), getenv)
		if o.agent && o.dataDir != "" {
			o.dataDir += "-agent" // a server may be on the same host
		}
	}
	if o.admin == "" {
		o.admin = adminSocket(os.Geteuid(), getenv)
	}
	return nil
}

// adminSocket is where lockctl looks for it as well. Off if there is no place for it.
func adminSocket(uid int, getenv func(string) string) string {
	dir, _, _ := strings.Cut(getenv("RUNTIME_DIRECTORY"), ":") // systemd.exec(5)
	switch {
	case filepath.IsAbs(dir):
	case uid == 0:
		dir = "/run/lockerd"
	default:
		if dir = getenv("XDG_RUNTIME_DIR"); !filepath.IsAbs(dir) {
			return off
		}
		dir = filepath.Join(dir, "lockerd")
	}
	return filepath.Join(dir, "admin.sock")
}

// stateDir is where a user's programs keep what must survive a restart (XDG Base
// Directory Specification, file-hierarchy(7)). Empty if the user has no home.
func stateDir(uid int, getenv func(string) string) string {
	if uid == 0 {
		return "/var/lib/lockerd"
	}
	if d := getenv("XDG_STATE_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "lockerd")
	}
	if d := getenv("HOME"); d != "" {
		return filepath.Join(d, ".local/state/lockerd")
	}
	return ""
}

// expand writes out the forms of options that IPC::Locker's programs accept,
// through Perl's Getopt::Long: one dash for two, any case, and any prefix that
// only one option has.
func expand(fs *pflag.FlagSet, args []string) ([]string, error) {
	out := make([]string, 0, len(args))
	for i := 0; i < len(args); i++ {
		a := args[i]
		if a == "--" {
			return append(out, args[i:]...), nil
		}
		name := strings.TrimPrefix(strings.TrimPrefix(a, "-"), "-")
		if name == a || name == "" {
			out = append(out, a)
			continue
		}
		name, value, has := strings.Cut(name, "=")
		f, err := find(fs, strings.ToLower(name))
		if err != nil {
			return nil, err
		}
		a = "--" + f.Name
		if has {
			a += "=" + value
		}
		out = append(out, a)
		if f.NoOptDefVal == "" && !has && i+1 < len(args) {
			i++
			out = append(out, args[i])
		}
	}
	return out, nil
}

func find(fs *pflag.FlagSet, name string) (*pflag.Flag, error) {
	if name == "no-fork" {
		name = "nofork"
	}
	if f := fs.Lookup(name); f != nil {
		return f, nil
	}
	var found []*pflag.Flag
	fs.VisitAll(func(f *pflag.Flag) {
		if strings.HasPrefix(f.Name, name) {
			found = append(found, f)
		}
	})
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("unknown option --%s: see lockerd --help", name)
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("--%s is short for --%s and for --%s: write it out", name, found[0].Name, found[1].Name)
}

const helpHead = `lockerd - a node of a lock cluster

Usage: lockerd [OPTION]...

Alone, lockerd is a cluster of one node that serves this host. Locks survive a
restart: they are kept in the data directory.

A node also tells which processes of its host live, on --host like all it serves:
the host needs no pidstatd then. Where one runs, the node leaves that to it, and in
a container, where numbers are not the host's, it does so only with --pidstat-port.
As leader it asks the pidstatd of hosts that have no node, on the same port, whether
the processes there that hold locks are dead. With --pidstat-port 0 it does neither:
what such processes hold when they die has to be broken by hand.

With --executors the node carries out what lockctl freeze and lockctl fsfreeze order,
also by way of other nodes. What it has frozen thaws when the time of the order is
up, when the node is killed, stopped, or out of touch with the cluster. The file
systems of /, /usr, /var, /run and /tmp, of --data-dir and of --protect are refused.
With --executors checkpoint it writes jobs to files, and starts them again, as lockctl
checkpoint and lockctl restart order. That takes CRIU: see scripts/install-criu.

Options:
`

const helpTail = `
Every option but --help, --version and --nofork may also be given as a variable
(LOCKERD_DATA_DIR for --data-dir) and in the file of --config (data-dir = "...").
The command line goes before the environment, and that before the file.

lockerd stays in the foreground and logs to stderr; under systemd it reports
readiness (Type=notify). SIGTERM and SIGINT stop it within 5 s: it hands its
leadership over and sends its clients to the other nodes. With --hooks it thaws in that time,
and waits for those that are told of it; a second signal ends that. SIGHUP is ignored.

Exit status:
   0  stopped by a signal
  64  wrong option, variable or file
  69  it cannot serve: an address or the data directory is not to be had
  70  internal error, or it could not stop in good order
  74  the disk failed
  78  the server was removed from its cluster: wipe its data to let it join again
  98  a port or socket is in use

Examples:
  lockerd                                      one node, for this host
  lockerd --host 0.0.0.0                       one node, for the network
  lockerd --path /run/lockerd/sock             one node, on a UNIX socket
  lockerd --pidstat-port 0                     one node, without pidstat
  lockerd --bootstrap-expect 3 --join a:1754,b:1754,c:1754 \
          --host 0.0.0.0 --peer 0.0.0.0:1753 --gossip 0.0.0.0:1754 \
          --advertise a --insecure             node a of three, on a trusted network
  lockerd --agent --join a:1754,b:1754 --gossip 0.0.0.0:1754 \
          --advertise x --insecure             on another host x of that farm
  lockerd --agent --join a:1754 --gossip 0.0.0.0:1754 --advertise x --insecure \
          --executors fs --hooks /etc/lockerd/hooks.d     which may freeze file systems
`

func help(fs *pflag.FlagSet) string { return helpHead + fs.FlagUsagesWrapped(80) + helpTail }
