package freezer

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

var (
	// ErrPermission is returned to those who may not freeze: it takes root.
	ErrPermission = errors.New("only root may freeze")
	// ErrOrder is returned for an order that makes no sense.
	ErrOrder = errors.New("bad order")
	// ErrNoTarget is returned when there is no such process, session or cgroup.
	ErrNoTarget = errors.New("there is nothing to freeze")
	// ErrSelf is returned when those who would have to thaw would be frozen as well.
	ErrSelf = errors.New("it would freeze those who are to thaw it")
	// ErrUnstoppable is returned when something did not stop, and partial freezes
	// are not allowed. The Report says what.
	ErrUnstoppable = errors.New("something cannot be stopped")
	// ErrRestless is returned when processes appeared, or ended, for so long that the
	// search for the last one was given up.
	ErrRestless = errors.New("processes come and go, and do not come to rest")
	// ErrHeld is returned when another guard has frozen something of the same.
	ErrHeld = errors.New("already frozen by another guard")
	// ErrGuardLost is returned when the guard has been killed. What it had frozen is
	// thawed.
	ErrGuardLost = errors.New("the guard was killed")
	// ErrDeadline is returned when the guard has thawed because the time was up.
	ErrDeadline = errors.New("thawed because the time was up")
	// ErrLease is returned when the guard has thawed because it has not heard from the
	// requester for as long as the order's Lease.
	ErrLease = errors.New("thawed because the requester was silent")
	// ErrThawed is returned when the freeze has ended before, for another reason.
	ErrThawed = errors.New("already thawed")
	// ErrBroken is returned when everything is thawed, but somebody else had thawed some of
	// it before: what was done meanwhile was not done while all of it stood still.
	ErrBroken = errors.New("somebody else had thawed it before")
	// ErrNotThawed is returned when something could not be thawed. The journal stays,
	// and whoever starts a guard tries it again.
	ErrNotThawed = errors.New("it could not be thawed")
)

// codes name the errors on the wire.
var codes = map[string]error{
	"permission":  ErrPermission,
	"order":       ErrOrder,
	"target":      ErrNoTarget,
	"self":        ErrSelf,
	"unstoppable": ErrUnstoppable,
	"restless":    ErrRestless,
	"held":        ErrHeld,
	"deadline":    ErrDeadline,
	"lease":       ErrLease,
	"thawed":      ErrThawed,
	"broken":      ErrBroken,
	"not thawed":  ErrNotThawed,

	"not supported":  ErrNotSupported,
	"not mounted":    ErrNotMounted,
	"no memory":      ErrNoMemory,
	"already frozen": ErrAlreadyFrozen,
	"protected":      ErrProtected,
}

const (
	// DefaultTimeout is the time from an order to the thaw if the order names none.
	DefaultTimeout = time.Minute
	// DefaultPatience is how long a process may be in uninterruptible sleep after it
	// was told to stop. Disks answer sooner.
	DefaultPatience = 500 * time.Millisecond

	// DefaultWithin bounds the time from the first signal to the last: a machine with
	// every processor busy needs some, and half a frozen machine is of use to nobody.
	DefaultWithin = 10 * time.Second

	// maxWithin bounds what an order may ask for.
	maxWithin = time.Minute
	// maxLease bounds a lease.
	maxLease = time.Hour
	// maxTargets bounds the targets, and the numbers in each, of an order.
	maxTargets = 4096
	// maxNamed bounds the processes that a Report names.
	maxNamed = 100
)

// Order says what a guard is to freeze, and for how long.
type Order struct {
	// Targets are frozen together, in this order, and thawed in reverse; but file
	// systems after all else, the youngest mount first.
	Targets []Target `json:"targets"`
	// Except lists processes that run on, beside those that always do.
	Except []int `json:"except,omitempty"`
	// Ancestors allows to freeze the processes that the requester descends from.
	Ancestors bool `json:"ancestors,omitempty"`
	// Partial allows that something does not stop: the Report says what.
	Partial bool `json:"partial,omitempty"`
	// Timeout is the time until the guard thaws by itself, on CLOCK_BOOTTIME, counted
	// from the order. 0 means DefaultTimeout, less than 0 that it never does.
	Timeout time.Duration `json:"timeout,omitempty"`
	// Detach lets the freeze last until its deadline though the requester has gone.
	Detach bool `json:"detach,omitempty"`
	// Lease is how long the guard goes without a word from the requester: then it thaws, as
	// the requester may hang, or be stopped. It is counted on CLOCK_BOOTTIME, from the order
	// and then from each [Guard.Renew]. 0 means that the requester may be silent, as long
	// as it is there.
	Lease time.Duration `json:"lease,omitempty"`
	// Patience is how long something may take to stop before it is given up as
	// unstoppable. 0 means DefaultPatience.
	Patience time.Duration `json:"patience,omitempty"`
	// Within is the time in which the freeze has to succeed, without that of file
	// systems, which takes as long as the disk. 0 means DefaultWithin.
	Within time.Duration `json:"within,omitempty"`
	// Protect lists paths whose file systems are never frozen, beside those that
	// never are: see [ErrProtected].
	Protect []string `json:"protect,omitempty"`
}

// Validate says whether an order makes sense: the error is [ErrOrder].
func (o *Order) Validate() error {
	switch {
	case len(o.Targets) == 0:
		return fmt.Errorf("%w: it names nothing to freeze", ErrOrder)
	case len(o.Targets) > maxTargets || len(o.Except) > maxTargets || len(o.Protect) > maxTargets:
		return fmt.Errorf("%w: more than %d targets or exceptions", ErrOrder, maxTargets)
	case o.Patience < 0 || o.Within < 0 || max(o.Patience, o.Within) > maxWithin:
		return fmt.Errorf("%w: a freeze takes from 0 to %v", ErrOrder, maxWithin)
	case o.Lease < 0 || o.Lease > maxLease:
		return fmt.Errorf("%w: a lease of %v, which is not from 0 to %v", ErrOrder, o.Lease, maxLease)
	case o.Lease > 0 && o.Detach:
		return fmt.Errorf("%w: a lease of a requester that need not be there", ErrOrder)
	}
	for i := range o.Targets {
		if err := o.Targets[i].validate(); err != nil {
			return err
		}
	}
	return nil
}

func (o *Order) timeout() time.Duration  { return cmp.Or(o.Timeout, DefaultTimeout) }
func (o *Order) patience() time.Duration { return cmp.Or(o.Patience, DefaultPatience) }
func (o *Order) within() time.Duration   { return cmp.Or(o.Within, DefaultWithin) }

// Kind is a kind of target.
type Kind string

const (
	KindMachine   Kind = "machine"
	KindTree      Kind = "tree"
	KindSession   Kind = "session"
	KindProcesses Kind = "processes"
	KindCgroup    Kind = "cgroup"

	KindFileSystem Kind = "filesystem"
)

// Target is something to be frozen: see [Machine], [Tree], [Session], [Processes],
// [Cgroup] and [FileSystem].
type Target struct {
	Kind Kind   `json:"kind"`
	PIDs []int  `json:"pids,omitempty"` // one for a tree and a session
	Path string `json:"path,omitempty"` // of a cgroup or file system
}

// Machine is every user process that can be seen.
func Machine() Target { return Target{Kind: KindMachine} }

// Tree is a process and all its descendants. One whose parent has ended belongs to
// no tree but that of the process that has taken it in.
func Tree(pid int) Target { return Target{Kind: KindTree, PIDs: []int{pid}} }

// Session is all processes of a session (setsid(2)).
func Session(sid int) Target { return Target{Kind: KindSession, PIDs: []int{sid}} }

// Processes are the ones listed, without their descendants.
func Processes(pids ...int) Target { return Target{Kind: KindProcesses, PIDs: pids} }

// Cgroup is a cgroup of version 2 with all below it, named by its directory.
func Cgroup(dir string) Target { return Target{Kind: KindCgroup, Path: dir} }

// FileSystem is the one that is mounted at a directory, all of it: its other mounts,
// bind mounts and subvolumes included. Whoever writes to it waits until the thaw.
func FileSystem(mount string) Target { return Target{Kind: KindFileSystem, Path: mount} }

// String is for people.
func (t Target) String() string {
	switch t.Kind {
	case KindMachine:
		return "all processes"
	case KindTree:
		return "the tree of " + numbers(t.PIDs)
	case KindSession:
		return "session " + numbers(t.PIDs)
	case KindProcesses:
		return "processes " + numbers(t.PIDs)
	case KindCgroup:
		return "cgroup " + OneLine(t.Path)
	case KindFileSystem:
		return "file system " + OneLine(t.Path)
	}
	return string(t.Kind)
}

func numbers(pids []int) string {
	var words []string
	for _, pid := range pids[:min(len(pids), 8)] {
		words = append(words, strconv.Itoa(pid))
	}
	if len(pids) > 8 {
		words = append(words, "...")
	}
	return strings.Join(words, ",")
}

func (t *Target) validate() error {
	wanted := 0
	switch t.Kind {
	case KindMachine:
	case KindTree, KindSession:
		wanted = 1
	case KindProcesses:
		wanted = max(1, min(len(t.PIDs), maxTargets))
	case KindCgroup, KindFileSystem:
		if !strings.HasPrefix(t.Path, "/") || len(t.Path) > 4096 || strings.ContainsAny(t.Path, "\x00") {
			return fmt.Errorf("%w: %q is no absolute path of a %s", ErrOrder, t.Path, t.Kind)
		}
	default:
		return fmt.Errorf("%w: no kind of target is called %q", ErrOrder, t.Kind)
	}
	if len(t.PIDs) != wanted {
		return fmt.Errorf("%w: %d process numbers for %s", ErrOrder, len(t.PIDs), t)
	}
	if i := slices.IndexFunc(t.PIDs, func(pid int) bool { return pid < 1 || pid > 1<<31-1 }); i >= 0 {
		return fmt.Errorf("%w: %d is no process number", ErrOrder, t.PIDs[i])
	}
	return nil
}

// Process is a process for people and programs to look at.
type Process struct {
	PID    int    `json:"pid"`
	Parent int    `json:"parent"`
	Start  uint64 `json:"start"` // clock ticks since boot
	State  string `json:"state"` // as in proc_pid_stat(5)
	Name   string `json:"name"`
	Why    string `json:"why,omitempty"` // why it did not stop
}

// Report says what an order has come to.
type Report struct {
	// Processes counts those that were stopped by signals.
	Processes int `json:"processes"`
	// Cgroups lists those that were frozen, without those that were so before.
	Cgroups []string `json:"cgroups,omitempty"`
	// FileSystems lists the mount points that were named, one for each file system.
	FileSystems []string `json:"filesystems,omitempty"`
	// Rounds counts the passes over the process table.
	Rounds int `json:"rounds,omitempty"`
	// Took is the time that the freeze took.
	Took time.Duration `json:"took"`
	// Running counts what did not stop, and Unstoppable names some of it.
	Running     int       `json:"running,omitempty"`
	Unstoppable []Process `json:"unstoppable,omitempty"`
	// Warnings say where the guard is weaker than it should be.
	Warnings []string `json:"warnings,omitempty"`
}

// String says in few words what is frozen.
func (r *Report) String() string {
	var parts []string
	if r.Processes == 1 {
		parts = append(parts, "1 process")
	} else if r.Processes > 0 || len(r.Cgroups)+len(r.FileSystems) == 0 {
		parts = append(parts, strconv.Itoa(r.Processes)+" processes")
	}
	switch n := len(r.Cgroups); {
	case n == 1:
		parts = append(parts, "cgroup "+OneLine(r.Cgroups[0]))
	case n > 1:
		parts = append(parts, strconv.Itoa(n)+" cgroups")
	}
	switch n := len(r.FileSystems); {
	case n == 1:
		parts = append(parts, "file system "+OneLine(r.FileSystems[0]))
	case n > 1:
		parts = append(parts, strconv.Itoa(n)+" file systems")
	}
	return strings.Join(parts, ", ")
}

func (r *Report) miss(p Process) {
	r.Running++
	if len(r.Unstoppable) < maxNamed {
		r.Unstoppable = append(r.Unstoppable, p)
	}
}
