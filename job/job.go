package job

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options says what to run and how to end it.
type Options struct {
	// Argv is the command. Argv[0] is looked up in PATH if it has no slash.
	Argv []string
	// Path is the program, if Argv[0] is not its name.
	Path string
	// Signals carries what is to be passed on to the command: the channel made by
	// [Notify]. Nil means that nothing is.
	Signals <-chan os.Signal
	// LostSignal is what everything the command started is told when [Job.Lost] is
	// called. Zero means SIGTERM.
	LostSignal syscall.Signal
	// Grace is the time from LostSignal to SIGKILL. Zero kills at once.
	Grace time.Duration
	// WaitAll lets the job last until the last descendant of the command has ended.
	WaitAll bool
}

// Exit says how a command ended.
type Exit struct {
	// Code is the exit status as a shell gives it: the command's own, or 128+n
	// when signal n ended it.
	Code int
	// Signaled says that a signal ended it.
	Signaled bool
	// Interrupted says that SIGINT ended the command in a session with a terminal.
	// A shell that runs us ends its loop or script only if we die of it too: see
	// [Interrupt].
	Interrupted bool
	// Lost says that the command was still running when Lost was called.
	Lost bool
	// Left counts the descendants that survived SIGKILL for killPatience, in
	// uninterruptible sleep or owned by somebody else. Only ever set after Lost.
	Left int
	// Remains counts the processes of our session that the command has left running
	// when a signal ended it. It did not choose to leave them: what it left when it
	// ended by itself, or sent into a session of its own, is not counted.
	Remains int
}

// Shell is the argument vector for words that the shell is to read again, joined
// by one space each.
func Shell(words []string) []string {
	text := ""
	for i, w := range words {
		if i > 0 {
			text += " "
		}
		text += w
	}
	return []string{"/bin/sh", "-c", text}
}

// killPatience bounds the wait for killed processes to go.
const killPatience = 5 * time.Second

// killInterval is the pause between two rounds of SIGKILL: a process can fork
// between our look at the process table and the signal.
const killInterval = 20 * time.Millisecond

// Job is a command that waits to be run, or runs.
type Job struct {
	opts    Options
	path    string
	pid     int
	gate    *gate
	own     bool      // it has a process group of its own
	tty     *terminal // nil without a controlling terminal
	changes chan change
	resume  chan bool     // answers each change: whether to wait for another
	opened  chan struct{} // the command is about to run
	lost    chan struct{}
	once    sync.Once
	ended   chan struct{}
	done    chan struct{}
	exit    Exit
	halted  bool // the command is stopped, and we with it
}

// change is one answer of wait4(2).
type change struct {
	pid    int
	status syscall.WaitStatus
	err    error
}

// Prepare makes the process that will execute the command, so that its number is
// known. It must be followed by Open or Abandon; main must have called [AtGate].
// A command that is not in PATH is found out here. The error has the exit status
// of a shell that cannot run a command; see [StartCode].
func Prepare(o Options) (*Job, error) {
	if len(o.Argv) == 0 || o.Argv[0] == "" {
		return nil, &StartError{Name: "", Err: errors.New("empty command")}
	}
	path := o.Path
	if path == "" {
		var err error
		if path, err = lookPath(o.Argv[0]); err != nil {
			return nil, &StartError{Name: o.Argv[0], Err: err}
		}
	}
	if o.LostSignal == 0 {
		o.LostSignal = syscall.SIGTERM
	}
	gate, sock, err := newGate()
	if err != nil {
		return nil, &StartError{Name: o.Argv[0], Err: err}
	}
	// Kernels before 3.4 have no subreapers. Then what leaves the process group
	// is not found, and the group has to do.
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

	j := &Job{
		opts:    o,
		path:    path,
		gate:    gate,
		tty:     openTerminal(),
		changes: make(chan change),
		resume:  make(chan bool),
		opened:  make(chan struct{}),
		lost:    make(chan struct{}),
		ended:   make(chan struct{}),
		done:    make(chan struct{}),
	}
	j.own = j.tty == nil || aloneInGroup()
	started := make(chan error)
	go j.wait(path, sock, started)
	if err := <-started; err != nil {
		_ = gate.file.Close()
		j.tty.close()
		return nil, &StartError{Name: o.Argv[0], Err: err}
	}
	go j.run()
	return j, nil
}

// Open runs the command. Each of changes sets a variable of its environment
// (NAME=VALUE) or unsets one (NAME). A file that is not nil is inherited by the
// command and all that it starts, unless they close it. The command has begun when
// Open returns nil; after an error, which is a [StartError], the Job is over.
func (j *Job) Open(changes []string, inherited *os.File) error {
	defer j.gate.file.Close()
	select {
	case j.opened <- struct{}{}:
	case <-j.done:
		return &StartError{Name: j.opts.Argv[0], Err: errFallen(os.ErrProcessDone)}
	}
	if err := j.gate.open(ignored(), changes, inherited); err != nil {
		_ = j.gate.file.Close() // it goes, if it has not gone
		<-j.done
		return &StartError{Name: j.opts.Argv[0], Err: err}
	}
	return nil
}

// Abandon ends a job that has not been opened.
func (j *Job) Abandon() {
	_ = j.gate.file.Close()
	<-j.done
}

// Start is Prepare and Open.
func Start(o Options) (*Job, error) {
	j, err := Prepare(o)
	if err != nil {
		return nil, err
	}
	if err := j.Open(nil, nil); err != nil {
		return nil, err
	}
	return j, nil
}

// PID is the process id of the command.
func (j *Job) PID() int { return j.pid }

// Ended is closed when the command itself has ended, Done included.
func (j *Job) Ended() <-chan struct{} { return j.ended }

// Done is closed when the command has ended: after Lost and with Options.WaitAll,
// when everything that it started has; before Open, when somebody has killed the
// process that waits to run it.
func (j *Job) Done() <-chan struct{} { return j.done }

// Wait waits for the end.
func (j *Job) Wait() Exit {
	<-j.done
	return j.exit
}

// Lost says that the command must not go on. All that it started gets LostSignal,
// and SIGKILL when Grace has passed. It returns at once, may be called more than
// once and from any goroutine, and does nothing after the end.
func (j *Job) Lost() { j.once.Do(func() { close(j.lost) }) }

// run owns the job's state from start to end.
func (j *Job) run() {
	defer close(j.done)
	defer j.tty.close()

	var (
		opened  bool
		ended   bool             // the command itself has been reaped
		signals <-chan os.Signal // what is passed on: nothing before the command runs
		stops   = &stopSignals{}
		lost    = j.lost         // nil once seen
		grace   <-chan time.Time // when to start killing
		killing *time.Ticker     // rounds of SIGKILL
		giveUp  <-chan time.Time // when to stop killing
	)
	defer func() { stops.stop() }()
	end := func() {
		if !ended {
			ended = true
			close(j.ended)
		}
	}
	defer end()
	kill := func() {
		j.signalAll(syscall.SIGKILL, !ended)
		if killing == nil {
			killing = time.NewTicker(killInterval)
			giveUp = time.After(killPatience)
		}
	}
	rounds := func() <-chan time.Time {
		if killing == nil {
			return nil
		}
		return killing.C
	}
	defer func() {
		if killing != nil {
			killing.Stop()
		}
	}()
	for {
		select {
		case c := <-j.changes:
			switch {
			case c.err != nil: // no child is left
				return
			case !opened:
				if c.pid == j.pid && !c.status.Stopped() {
					j.resume <- false
					return
				}
			case c.status.Stopped():
				if c.pid == j.pid && !j.exit.Lost {
					j.stopped(c.status.StopSignal())
				}
			case c.pid == j.pid:
				j.exit.Code, j.exit.Signaled = exitCode(c.status), c.status.Signaled()
				j.exit.Interrupted = j.tty != nil && c.status.Signaled() && c.status.Signal() == syscall.SIGINT
				j.tty.takeBack(j.pid)
				if !j.exit.Lost && !j.opts.WaitAll {
					if c.status.Signaled() {
						j.exit.Remains, _ = Remaining(nil)
					}
					j.resume <- false
					return
				}
				end()
			}
			j.resume <- true
		case <-j.opened:
			opened = true
			signals = j.opts.Signals
			stops = notifyStops()
		case s := <-signals:
			if ended {
				// With WaitAll: it is for what the command has left.
				j.signalAll(s.(syscall.Signal), false)
			} else {
				j.forward(s.(syscall.Signal))
			}
		case s := <-stops.ch:
			if !ended {
				j.forward(s.(syscall.Signal))
			}
		case <-lost:
			lost = nil
			j.exit.Lost = true
			if j.opts.Grace <= 0 {
				kill()
				break
			}
			grace = time.After(j.opts.Grace)
			j.signalAll(j.opts.LostSignal, true)
			// A stopped process does not act on a signal before it is continued.
			j.signalAll(syscall.SIGCONT, true)
		case <-grace:
			grace = nil
			kill()
		case <-rounds():
			kill()
		case <-giveUp:
			j.exit.Left = len(descendants())
			if !ended { // and it never will be reaped
				j.exit.Code, j.exit.Signaled = 128+int(syscall.SIGKILL), true
			}
			// The one goroutine that outlives Done, with the one it serves: wait4
			// returns when what is left has gone, and somebody must hear of it.
			go func() {
				for c := range j.changes {
					if c.err != nil {
						return
					}
					j.resume <- true
				}
			}()
			return
		}
	}
}

// forward passes a signal that was sent to us on to the command.
func (j *Job) forward(s syscall.Signal) {
	switch {
	case s == syscall.SIGCONT && j.own:
		// fg: the shell has given the terminal to our group before it continued us.
		j.tty.handOver(j.pid)
		j.halted = false
	case s == syscall.SIGTSTP && j.halted:
		// Ctrl-Z right after fg, when the terminal was still ours: the kernel drops
		// the SIGCONT for it (signal(7)), and the command has never run on.
		_ = syscall.Kill(syscall.Getpid(), syscall.SIGSTOP)
		return
	}
	if !j.own && s == syscall.SIGCONT && j.halted {
		// fg continues the whole group. From us it might come so late that it undid the
		// next stop.
		j.halted = false
		return
	}
	if !j.own {
		// What the terminal sends goes to the whole foreground group, so the
		// command has had it already.
		if fromTerminal(s) && j.tty.ours() {
			return
		}
		_ = syscall.Kill(j.pid, s)
		return
	}
	_ = syscall.Kill(-j.pid, s)
}

// stopped follows the command into a stop, so that the shell that waits for us
// sees what it would see without us.
func (j *Job) stopped(s syscall.Signal) {
	if j.tty == nil {
		return
	}
	if !j.own {
		// The terminal has stopped the whole group but us, who catch its signal; the
		// shell waits for all of it.
		if !orphanedGroup() {
			j.halted = true
			_ = syscall.Kill(syscall.Getpid(), syscall.SIGSTOP)
		}
		return
	}
	if s == syscall.SIGTTIN || s == syscall.SIGTTOU {
		if j.tty.foreground() == j.pid {
			// It asked for the terminal before it was given it.
			_ = syscall.Kill(-j.pid, syscall.SIGCONT)
			return
		}
	}
	j.tty.takeBack(j.pid)
	if orphanedGroup() {
		// Nobody would ever continue us, and the kernel would not have stopped a
		// command that ran here in our place.
		j.tty.handOver(j.pid)
		_ = syscall.Kill(-j.pid, syscall.SIGCONT)
		return
	}
	j.halted = true
	// The code for going on is in forward, with SIGCONT: this thread may run a
	// little after kill has returned.
	_ = syscall.Kill(syscall.Getpid(), syscall.SIGSTOP)
}

// signalAll signals everything that the command has started. With group, the
// process group too, which is only certain to be the command's while the command
// has not been reaped.
func (j *Job) signalAll(s syscall.Signal, group bool) {
	if group && j.own {
		_ = syscall.Kill(-j.pid, s)
	}
	for _, p := range descendants() {
		if group && j.own && p.group == j.pid {
			continue
		}
		p.signal(s)
	}
}
