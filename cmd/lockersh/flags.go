package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/client"
	"github.com/lockerd/lockerd/getopt"
	"github.com/lockerd/lockerd/job"
	"github.com/lockerd/lockerd/pidprobe"
)

const usage = `lockersh - run a command under a lock of the cluster

Usage: lockersh --lock NAME [OPTION]... COMMAND...
       lockersh --lock NAME [OPTION]... -- COMMAND [ARGUMENT]...
       lockersh --lock NAME [OPTION]... --for PID
       lockersh --lock NAME --release [--for PID]
       lockersh --locklist [--json]

Waits for the lock, runs the command, and releases the lock when the command
ends. The command's words are joined by one space and read by /bin/sh; after --
they are a program and its arguments, as they stand.

Examples:
  lockersh --lock nightly 'cd /data && make'
  lockersh --lock nightly --try -- rsync -a 'My Files' backup:
  lockersh --lock lic1:lic2:lic3 --timeout 600 simulate   any one of three
  lockersh --lock db --all --lock disk --shared backup    both at once, shared
  lockersh --lock build --slots 4 make                    at most four at once
  lockersh --lock job1 --checkpoint /shared/ckpt -- ./job >>log 2>&1
                                                          goes on elsewhere
  lockersh --lock db --for $$                             this shell has it now
  lockersh --lock db --release                            and gives it back

The lock ends with the command's process, whatever becomes of lockersh. If the
command is killed, it ends with the last of the processes that it has started.

Options:
`

const usageEnd = `
Options may be shortened as long as they are unique, may start with one dash,
and ignore case; --no-NAME undoes one that has no value. SECONDS may have a
fraction, or a unit as in 90s, 5m, 2h. Options end at the first other word.

The command finds LOCKER_LOCK (the lock it has; several with colons between)
and LOCKER_FENCE (the fencing token, which only grows) in its environment. By
LOCKER_ID, and by a connection that it inherits, its descendants are known.

With --checkpoint the command is saved to DIR again and again. If its host
dies, the lockersh that gets the lock next goes on from the last whole one. On
SIGTERM to lockersh it is saved and ended. When it ends by itself, what was
saved is removed, and the others that wait end with its status. It takes root,
CRIU, a lease (30 s if none is given), output to files, and a command that may
do again what it did since it was saved, with the fence of now: that is in the
file LOCKERSH_FENCE_FILE, and while that is locked (flock) nothing is saved.

With --checkpointable the command may ask for checkpoints itself (cr_checkpoint
--self). A signal that asks for one is sent on to it if it catches that. Saved
and ended its status is 169, and the lock is free.

Environment:
  IPCLOCKER_HOST  servers: host, host:port or [v6]:port, with colons between
                  (default localhost)
  IPCLOCKER_PORT  port number, name of a service, or path of a UNIX socket
                  (default the service lockerd of /etc/services, else 1751)

Exit status: the command's own, 128+n if signal n ended it, and
   64  wrong usage
   69  no server answers, however often --connect-tries says: by default that
       takes one to two minutes, and is told on standard error output; or the
       cluster refuses; or checkpoints do not work here
   70  lockersh cannot do its own part, and says why
   71  the command's checkpoint cannot be restored on this host; or a job of
       another cluster whose lock has the same name is here
   74  what was asked for cannot be written to standard output
   75  gave up waiting (--timeout), or the lock is busy (--try); the command's
       checkpoint cannot be restored now
   76  the lock was lost, and the command ended because of that
   79  the command was put on disk, and its lock is kept for it
  126  the command cannot be executed
  127  there is no such command
130 and the like are also the status of a lockersh ended by a signal while it
waited. Without the lock the command is never run.
`

// What happens to the command when its lock is lost.
const (
	onLostDefault = "TERM"
	graceDefault  = 10 * time.Second
)

// settings are the command line in the form in which the parts want it.
type settings struct {
	getopt.Standard
	list, json, verbose bool

	locker  client.Options
	job     job.Options
	fenceFD int // -1 for none

	batch   *batch // nil for a command that is not checkpointed
	exec    bool
	process int32 // whom the lock is for, 0 for the command
	release bool
}

// lockNames are the names wanted, for people.
func (s *settings) lockNames() string { return strings.Join(s.locker.Locks, ":") }

// With a lease the command is given notice when a quarter of it is left, killed by
// us leaseGrace later at most, and by the guard when a tenth is left.
func leaseGrace(lease time.Duration) time.Duration { return lease / 10 }
func guardAhead(lease time.Duration) time.Duration { return lease / 10 }

// raw is what the flags are parsed into.
type raw struct {
	getopt.Standard
	hosts, port, path      string
	locks                  []string
	timeout, hold, lease   getopt.Seconds
	grace, connectDelay    getopt.Seconds
	slots                  uint32
	fenceFD, connectTries  int
	onLost                 string
	try, shared, all       bool
	exec, waitAll, release bool
	process                string
	verbose, debug         bool
	list, json             bool
	checkpointable, zstd   bool
	trust                  bool
	checkpoint             string
	every, wait            getopt.Seconds
}

func flags(r *raw) *pflag.FlagSet {
	fs := pflag.NewFlagSet("lockersh", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.StringArrayVar(&r.locks, "lock", nil, "`NAME` of the lock; again, or with colons between, for several: the first that is free")
	fs.BoolVar(&r.all, "all", false, "all the locks named, at once, instead of any of them")
	fs.BoolVar(&r.shared, "shared", false, "share the lock with others that ask for it so")
	fs.Uint32Var(&r.slots, "slots", 0, "share the lock among at most `N` holders; all must name the same N")
	fs.BoolVar(&r.try, "try", false, "do not wait: status 75 if the lock is busy")
	fs.Var(&r.timeout, "timeout", "wait for the lock no longer than this: status 75; 0 waits for ever")
	fs.Var(&r.hold, "hold", "lose the lock after it was held for so long; 0 is no limit")
	fs.Var(&r.lease, "lease", "lose the lock when the cluster has not heard from us for so long; 0 keeps it as long as the command lives")
	r.onLost = onLostDefault
	fs.StringVar(&r.onLost, "on-lost", r.onLost, "`SIGNAL` for the command and all that it started when the lock is lost")
	r.grace = getopt.Seconds(graceDefault)
	fs.Var(&r.grace, "grace", "time from there to SIGKILL, with --lease at most a tenth of it")
	fs.StringVar(&r.checkpoint, "checkpoint", "", "save the command to the directory `DIR`, which hosts share, and go on from there if it was not saved by its end")
	r.every = getopt.Seconds(everyDefault)
	fs.Var(&r.every, "checkpoint-every", "time from one checkpoint to the next")
	fs.BoolVar(&r.zstd, "checkpoint-zstd", false, "compress the checkpoints")
	fs.BoolVar(&r.trust, "checkpoint-trust", false, "use a directory DIR in which others than root could write; whoever can decides what is run")
	fs.BoolVar(&r.checkpointable, "checkpointable", false, "make a checkpoint when the command asks for one, and on signal 40 (RTMIN+6), and on 41 end as well; without --checkpoint in the file context.PID")
	r.wait = getopt.Seconds(waitDefault)
	fs.Var(&r.wait, "checkpoint-wait", "time that a command which catches these signals itself may take until it asks for its checkpoint")
	fs.BoolVar(&r.waitAll, "wait-all", false, "hold the lock until everything that the command started has ended, daemons too")
	fs.BoolVar(&r.exec, "exec", false, "run the command in place of lockersh, in the same process, as IPC::Locker does")
	fs.StringVar(&r.process, "for", "", "take the lock for the process `PID` and run nothing: it holds the lock until it ends")
	fs.BoolVar(&r.release, "release", false, "give back what --for took; PID is the calling process if it is not given")
	fs.IntVar(&r.fenceFD, "fence-fd", -1, "write the fencing token and a newline to this inherited descriptor `N`, and leave it open for the command")
	fs.Lookup("fence-fd").DefValue = "0" // in the help, there is none
	fs.StringVar(&r.hosts, "dhost", "", "`HOST` of the server, or several as in IPCLOCKER_HOST")
	fs.StringVar(&r.port, "port", "", "`PORT` of the server, as IPCLOCKER_PORT")
	fs.StringVar(&r.path, "path", "", "UNIX `SOCKET` of the server, instead of host and port")
	fs.IntVar(&r.connectTries, "connect-tries", 0, "try all servers `N` times before giving up (default 3, with --try and --locklist 1)")
	r.connectDelay = getopt.Seconds(client.DefaultConnectDelay)
	fs.Var(&r.connectDelay, "connect-delay", "pause between two of these tries, up to twice that at random")
	fs.BoolVar(&r.list, "locklist", false, "print the locks that are held and their owners, and run nothing")
	fs.BoolVar(&r.json, "json", false, "with --locklist: the whole table, with fences and queues")
	fs.BoolVar(&r.verbose, "verbose", false, "tell of waiting, getting the lock and trying again")
	fs.BoolVar(&r.debug, "debug", false, "accepted for old command lines")
	r.Add(fs)
	return fs
}

// original lists the options that scripts may shorten as they could before there
// were others.
var original = []string{"dhost", "port", "lock", "locklist", "timeout", "verbose", "debug", "help", "version"}

// parse sets the flags of args by the rules of Perl's Getopt::Long, which pflag
// does not have, and returns the words of the command. literal says that they
// followed a "--".
func parse(fs *pflag.FlagSet, args []string) (words []string, literal bool, err error) {
	for len(args) > 0 {
		arg := args[0]
		if arg == "--" {
			return args[1:], true, nil
		}
		if len(arg) < 2 || arg[0] != '-' {
			return args, false, nil
		}
		args = args[1:]
		name, value, given := strings.Cut(strings.TrimPrefix(arg[1:], "-"), "=")
		f, negated, err := find(fs, name)
		if err != nil {
			return nil, false, err
		}
		switch {
		case f.NoOptDefVal == "" && !given: // it needs a value
			if len(args) == 0 {
				return nil, false, misuse("Option %s requires an argument", f.Name)
			}
			value, args = args[0], args[1:]
		case negated && given:
			return nil, false, misuse("Option %s does not take an argument", name)
		case negated:
			value = "false"
		case !given:
			value = f.NoOptDefVal
		}
		if err := fs.Set(f.Name, value); err != nil {
			return nil, false, misuse("Value %q invalid for option %s", value, f.Name)
		}
	}
	return nil, false, nil
}

// find looks an option up by its name, by a prefix that only one has, or by the
// negation of one of these.
func find(fs *pflag.FlagSet, name string) (f *pflag.Flag, negated bool, err error) {
	key := strings.ToLower(name)
	if found := matching(fs, key); len(found) == 1 {
		return found[0], false, nil
	} else if len(found) > 1 {
		names := make([]string, len(found))
		for i, f := range found {
			names[i] = f.Name
		}
		slices.Sort(names)
		return nil, false, misuse("Option %s is ambiguous (%s)", name, strings.Join(names, ", "))
	}
	if rest, ok := strings.CutPrefix(key, "no"); ok {
		if found := matching(fs, strings.TrimPrefix(rest, "-")); len(found) == 1 && found[0].NoOptDefVal != "" {
			return found[0], true, nil
		}
	}
	return nil, false, misuse("Unknown option: %s", name)
}

func matching(fs *pflag.FlagSet, prefix string) []*pflag.Flag {
	if prefix == "" {
		return nil
	}
	if f := fs.Lookup(prefix); f != nil {
		return []*pflag.Flag{f}
	}
	var all, old []*pflag.Flag
	fs.VisitAll(func(f *pflag.Flag) {
		if strings.HasPrefix(f.Name, prefix) {
			all = append(all, f)
			if slices.Contains(original, f.Name) {
				old = append(old, f)
			}
		}
	})
	if len(old) == 1 {
		return old
	}
	return all
}

// usageError is a line that scripts may know from IPC::Locker, capitals and all.
type usageError struct {
	line   string
	detail string // a line of the option parser, before the other
}

func (e *usageError) Error() string { return e.line }

func misuse(format string, args ...any) error {
	return &usageError{line: fmt.Sprintf(format, args...)}
}

// read turns a command line into settings.
func read(args []string) (*settings, error) {
	var r raw
	fs := flags(&r)
	words, literal, err := parse(fs, args)
	if err != nil {
		return nil, &usageError{line: "Bad usage, see lockersh --help", detail: err.Error()}
	}
	s := &settings{Standard: r.Standard, list: r.list, json: r.json, verbose: r.verbose, fenceFD: -1}
	if s.Asked() {
		return s, nil
	}
	s.locker = client.Options{
		Port:         r.port,
		ConnectTries: r.connectTries,
		ConnectDelay: time.Duration(r.connectDelay),
		All:          r.all,
		Shared:       r.shared,
		Slots:        r.slots,
		Autounlock:   true,
		KeepOnClose:  true,
		HoldLimit:    client.NoLimit,
		Lease:        time.Duration(r.lease),
		WaitLimit:    time.Duration(r.timeout),
		Try:          r.try,
	}
	if r.hosts != "" {
		s.locker.Hosts = client.SplitHosts(r.hosts)
	}
	if r.path != "" {
		s.locker.Family, s.locker.Port = client.UNIX, r.path
	}
	if r.hold > 0 {
		s.locker.HoldLimit = time.Duration(r.hold)
	}
	if (r.try || r.list) && r.connectTries == 0 {
		s.locker.ConnectTries = 1
	}
	if r.list {
		return s, nil
	}
	for _, l := range r.locks {
		for name := range strings.SplitSeq(l, ":") {
			if name != "" && !slices.Contains(s.locker.Locks, name) {
				s.locker.Locks = append(s.locker.Locks, name)
			}
		}
	}
	if len(s.locker.Locks) == 0 {
		return nil, errors.New("--lock not specified; see --help")
	}
	if fs.Changed("for") || r.release {
		if err := s.readClaim(&r, words, fs.Changed("for")); err != nil {
			return nil, err
		}
	} else if err := s.readCommand(&r, words, literal); err != nil {
		return nil, err
	}
	if fs.Changed("fence-fd") {
		if err := checkInherited(r.fenceFD); err != nil {
			return nil, fmt.Errorf("--fence-fd %d: %w", r.fenceFD, err)
		}
		s.fenceFD = r.fenceFD
		s.locker.NeedFence = true
	}
	return s, nil
}

// readCommand is for a command that runs under the lock.
func (s *settings) readCommand(r *raw, words []string, literal bool) (err error) {
	if len(words) == 0 || words[0] == "" {
		return misuse("No command specified")
	}
	if s.job.Argv = words; !literal {
		s.job.Argv = job.Shell(words)
	}
	if s.job.LostSignal, err = job.ParseSignal(r.onLost); err != nil {
		return fmt.Errorf("--on-lost: %w", err)
	}
	s.job.Grace = time.Duration(r.grace)
	s.job.WaitAll = r.waitAll
	s.exec = r.exec
	if err := s.readBatch(r); err != nil {
		return err
	}
	if r.lease > 0 {
		if r.exec {
			return errors.New("--lease needs lockersh to stay and watch over the command; it does not go with --exec")
		}
		s.job.Grace = min(s.job.Grace, leaseGrace(time.Duration(r.lease)))
	}
	return nil
}

// readClaim is for a process that runs already.
func (s *settings) readClaim(r *raw, words []string, named bool) (err error) {
	switch {
	case len(words) > 0:
		return errors.New("--for and --release run no command; see --help")
	case r.exec || r.waitAll:
		return errors.New("--exec and --wait-all are about a command, and --for and --release run none")
	case r.lease > 0:
		return errors.New("--lease needs lockersh to stay and renew it; it does not go with --for")
	case r.checkpoint != "" || r.checkpointable:
		return errors.New("--checkpoint and --checkpointable are about a command, and --for and --release run none")
	}
	s.release = r.release
	s.process = int32(os.Getppid())
	if named {
		if s.process, err = pidprobe.ParsePID(r.process); err != nil {
			return fmt.Errorf("--for %q: %w", r.process, err)
		}
	}
	if s.process == 1 && !named {
		return errors.New("the calling process has ended; name one with --for")
	}
	return nil
}

// checkInherited refuses a descriptor that our parent has not passed on: one that
// is not open, or that the runtime has opened for itself. What comes through exec
// is never close-on-exec, and what the runtime opens always is.
func checkInherited(fd int) error {
	if fd < 1 {
		return errors.New("not a descriptor to write to")
	}
	bits, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil || bits&syscall.FD_CLOEXEC != 0 {
		return errors.New("no such descriptor was inherited")
	}
	mode, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || mode&unix.O_ACCMODE == unix.O_RDONLY {
		return errors.New("not open for writing")
	}
	return nil
}
