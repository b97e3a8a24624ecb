package client

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"github.com/lockerd/lockerd/transport"
)

// NoLimit is a HoldLimit that never ends.
const NoLimit time.Duration = -1

// Defaults of Options.
const (
	DefaultLock           = "lock"
	DefaultHoldLimit      = 30 * time.Minute
	DefaultConnectTries   = 3
	DefaultConnectDelay   = 30 * time.Second
	DefaultConnectTimeout = 5 * time.Second
	DefaultSocket         = "/var/locks/lockerd"
)

// Family says how servers are reached.
type Family uint8

const (
	Auto Family = iota // UNIX if Port begins with a slash, INET if not
	INET
	UNIX // Port is a path, DefaultSocket if there is none
)

// Options say what to lock, for whom and where. The zero value is ready to use:
// it is what IPC::Locker->new() is without arguments.
type Options struct {
	// Hosts lists servers in the order in which to try them: host, host:port,
	// [v6]:port, or the path of a UNIX socket. Empty means IPCLOCKER_HOST, which is
	// a list with colons, or else localhost.
	Hosts []string
	// Port is a number, the name of a service, or the path of a UNIX socket, for
	// hosts that name none. Empty means IPCLOCKER_PORT, or else the service lockerd
	// of /etc/services, or else 1751.
	Port   string
	Family Family
	// TLS, if not nil, encrypts TCP connections.
	TLS *tls.Config

	// ConnectTries is how often the whole list of servers is tried, with pauses of
	// ConnectDelay to twice that, at random, between the tries. 0 means 3 and 30 s.
	ConnectTries int
	ConnectDelay time.Duration
	// ConnectTimeout bounds the connection to one server. 0 means 5 s; too little
	// leaves out servers across a slow link, too much delays the turn of the next.
	ConnectTimeout time.Duration

	// Locks are the names wanted: the first of them to be free, or with All every
	// one of them at once. Empty means "lock".
	Locks []string
	All   bool
	// Shared lets any number of Shared holders in; Slots, if not 0, at most that
	// many (a number that all holders of the lock must agree on). Neither: one.
	Shared bool
	Slots  uint32

	// User is the owner's name in lists, and the identity by which a repeated
	// request is recognised. Empty means host_pid_USER, as IPC::Locker makes it.
	User string
	// Request tells this request from others of User: the same again, from whatever
	// process, is answered with the hold that it has. Zero means one of its own.
	Request [16]byte
	// PID is the process that owns the lock. 0 means this one.
	PID int
	// Autounlock lets the lock end with the process PID of this host.
	Autounlock bool

	// HoldLimit is the longest time the lock is held: it is taken away after that.
	// 0 means 30 minutes, NoLimit none.
	HoldLimit time.Duration
	// Lease, if not 0, lets the lock end when the servers have not heard of us for
	// that long. It is renewed by itself; Lost fires a quarter of it before the
	// servers could give the lock away.
	Lease time.Duration
	// WaitLimit bounds the wait in Lock. 0 waits for ever.
	WaitLimit time.Duration
	// Try does not wait: ErrBusy when somebody else has the lock.
	Try bool
	// NeedFence refuses servers that give no fencing tokens.
	NeedFence bool

	// KeepOnClose lets the lock outlive Close, until its process or its limit ends it.
	KeepOnClose bool

	Hooks Hooks
	// Verbose, if not nil, gets the lines that IPC::Locker prints with verbose
	// for each hook that is nil.
	Verbose io.Writer
}

// Hooks are told of what happens during Lock and BreakLock. They are called one
// at a time, from the goroutine of the call, which waits for them. Any may be nil.
type Hooks struct {
	Waiting  func(owner string)                   // the lock is busy
	Place    func(n int)                          // the place in the queue; 1 is next
	Obtained func()                               // after Waiting: it is ours
	Broke    func(owner string)                   // owner's hold has been broken
	Retry    func(delay time.Duration, err error) // no server; trying again after delay
	Down     func(err error)                      // no server; giving up

	// Renewed is told until when the lease lasts, on CLOCK_BOOTTIME, after the grant
	// and each renewal: from a goroutine of its own, which waits for it.
	Renewed func(until time.Duration)
}

func (o *Options) setDefaults() error {
	if len(o.Locks) == 0 {
		o.Locks = []string{DefaultLock}
	}
	if o.PID == 0 {
		o.PID = os.Getpid()
	}
	if o.User == "" {
		o.User = DefaultUser(o.PID)
	}
	if o.HoldLimit == 0 {
		o.HoldLimit = DefaultHoldLimit
	} else if o.HoldLimit == NoLimit {
		o.HoldLimit = 0
	}
	if o.ConnectTries == 0 {
		o.ConnectTries = DefaultConnectTries
	}
	if o.ConnectDelay == 0 {
		o.ConnectDelay = DefaultConnectDelay
	}
	if o.ConnectTimeout == 0 {
		o.ConnectTimeout = DefaultConnectTimeout
	}
	if o.Verbose != nil {
		o.Hooks.printTo(o.Verbose)
	}
	return o.validate()
}

func (o *Options) validate() error {
	if len(o.Locks) > transport.MaxNames {
		return fmt.Errorf("%d lock names; at most %d", len(o.Locks), transport.MaxNames)
	}
	for _, name := range o.Locks {
		if err := checkWord("lock name", name); err != nil {
			return err
		}
	}
	if err := checkWord("user", o.User); err != nil {
		return err
	}
	switch {
	case o.Shared && o.Slots > 0:
		return errors.New("a lock is shared by all or by a number of slots, not both")
	case o.PID < 1 || o.PID > math.MaxInt32:
		return fmt.Errorf("pid %d: pids go from 1 to %d", o.PID, math.MaxInt32)
	case o.HoldLimit < 0 || o.Lease < 0 || o.WaitLimit < 0 || o.ConnectDelay < 0 || o.ConnectTimeout < 0 || o.ConnectTries < 0:
		return errors.New("a negative time or count makes no sense")
	case o.Lease > 0 && o.Lease < minLease:
		return fmt.Errorf("a lease of %v is shorter than an election may take; at least %v", o.Lease, minLease)
	}
	return nil
}

// checkWord refuses what would not be one word of the line protocol: another
// name, or worse, another line.
func checkWord(what, s string) error {
	if s == "" || len(s) > transport.MaxName {
		return fmt.Errorf("%s of %d bytes: 1 to %d are allowed", what, len(s), transport.MaxName)
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f {
			return fmt.Errorf("%s %q has a blank or a control character in it", what, s)
		}
	}
	return nil
}

// extras says whether a request of these options means something else to a
// server that skips the lines of proto 2.
func (o *Options) extras() bool {
	return o.Shared || o.Slots > 0 || (o.All && len(o.Locks) > 1) || o.Lease > 0 || o.NeedFence
}

func (h *Hooks) printTo(w io.Writer) {
	say := func(format string, args ...any) {
		fmt.Fprintf(w, format+" at "+time.Now().Format(time.ANSIC)+"\n", args...)
	}
	if h.Waiting == nil {
		h.Waiting = func(owner string) { say("Waiting for lock from %s", owner) }
	}
	if h.Obtained == nil {
		h.Obtained = func() { say("Obtained lock") }
	}
	if h.Broke == nil {
		h.Broke = func(owner string) { say("Broke lock from %s", owner) }
	}
	if h.Retry == nil {
		h.Retry = func(delay time.Duration, _ error) {
			say("Unable to connect to server, retrying connection in %.3g sec", delay.Seconds())
		}
	}
}
