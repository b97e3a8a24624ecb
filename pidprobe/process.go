package pidprobe

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

var (
	// ErrPID is returned for a number that no process can have.
	ErrPID = errors.New("a process number is from 1 to 2147483647")
	// ErrDead is returned when the process that was asked for has ended.
	ErrDead = errors.New("the process has ended")
	// ErrUnsure is returned when the process there cannot be told from an earlier
	// one of its number.
	ErrUnsure = errors.New("the start time of the process cannot be read")
)

// Process identifies a process. Start is in clock ticks since boot
// (proc_pid_stat(5), field 22), 0 if not known; Boot is the kernel's boot id
// (random(4)), empty if not known. What is not known is not compared. Host is for
// the caller: here every process is one of this host.
type Process struct {
	Host  string
	PID   int32
	Start uint64
	Boot  string
}

// Verdict says what is known about a process.
type Verdict int

const (
	Unknown Verdict = iota // no evidence either way
	Alive
	Dead // for certain
)

func (v Verdict) String() string {
	switch v {
	case Alive:
		return "alive"
	case Dead:
		return "dead"
	}
	return "unknown"
}

// ParsePID reads a process number in decimal. The error is [ErrPID].
func ParsePID(text string) (int32, error) {
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil || n == 0 || text[0] == '+' {
		return 0, ErrPID
	}
	return int32(n), nil
}

// Lookup identifies the process that has a number now. It returns [ErrDead] if
// there is none, and [ErrUnsure] if its start time cannot be read.
func Lookup(pid int32) (Process, error) {
	if pid < 1 {
		return Process{}, ErrPID
	}
	p := Process{PID: pid}
	if Check(p) == Dead {
		return Process{}, fmt.Errorf("process %d: %w", pid, ErrDead)
	}
	st, ok := readStat(pid)
	if !ok {
		if Check(p) == Dead {
			return Process{}, fmt.Errorf("process %d: %w", pid, ErrDead)
		}
		return Process{}, fmt.Errorf("process %d: %w", pid, ErrUnsure)
	}
	p.Start, p.Boot = st.start, bootID()
	return p, nil
}

// Identify completes a process of which the number alone is known with the start time
// of the one that has that number now. Of p as it is given it returns [ErrPID],
// [ErrDead] if it has ended, and [ErrUnsure] if the start time cannot be read.
func Identify(p Process) (Process, error) {
	switch {
	case p.PID < 1:
		return p, ErrPID
	case p.ofAnotherBoot():
		return p, ErrDead
	case p.Start != 0:
		return p, nil
	}
	st, ok := readStat(p.PID)
	switch {
	case ok && !st.dead && st.start != 0: // it is 0 for what the kernel has started at once
		p.Start = st.start
		return p, nil
	case Check(p) == Dead:
		return p, ErrDead
	}
	return p, ErrUnsure
}

// Check says whether a process of this host lives.
func Check(p Process) Verdict {
	if p.PID < 1 {
		return Unknown
	}
	if p.ofAnotherBoot() {
		return Dead
	}
	fd, err := unix.PidfdOpen(int(p.PID), 0)
	if err == nil {
		defer unix.Close(fd)
		if p.replaced() || ended(fd) {
			return Dead
		}
		return Alive
	}
	if err == unix.ESRCH {
		return Dead
	}
	// The kernel is older than 5.3, descriptors have run out, or it is the number
	// of a thread.
	return checkWithout(p)
}

// checkWithout is Check by kill(2) and /proc alone.
func checkWithout(p Process) Verdict {
	err := unix.Kill(int(p.PID), 0)
	if err == unix.ESRCH {
		return Dead
	}
	st, ok := readStat(p.PID)
	switch {
	case ok && (st.dead || p.Start != 0 && st.start != p.Start):
		return Dead
	case ok:
		return Alive
	case err == nil && p.Start == 0:
		return Alive
	}
	return Unknown
}

func (p Process) ofAnotherBoot() bool {
	return p.Boot != "" && bootID() != "" && p.Boot != bootID()
}

// replaced says whether it is certain that p's number is another process's. To
// be asked when a pidfd has been opened: then either the pidfd is for the process
// found here, or that has ended, and p with it or before.
func (p Process) replaced() bool {
	if p.Start == 0 {
		return false
	}
	st, ok := readStat(p.PID)
	return ok && st.start != p.Start
}

// ended says whether the process of a pidfd has: all its threads, reaped or not.
func ended(pidfd int) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if err != unix.EINTR {
			return err == nil && n > 0
		}
	}
}

// stat is what /proc/PID/stat tells.
type stat struct {
	start uint64
	dead  bool
}

func readStat(pid int32) (stat, bool) {
	if !ownProc() {
		return stat{}, false
	}
	// Not by package os, which would try to add the file to the runtime's poller.
	fd, err := unix.Open("/proc/"+strconv.Itoa(int(pid))+"/stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return stat{}, false
	}
	defer unix.Close(fd)
	var text [1024]byte // the fields in question are within
	n, err := unix.Read(fd, text[:])
	if err != nil {
		return stat{}, false
	}
	return parseStat(text[:n])
}

// parseStat reads the text of proc_pid_stat(5): state, threads and start time are
// fields 3, 20 and 22.
func parseStat(text []byte) (stat, bool) {
	// The name in field 2 may itself have blanks and parentheses.
	f := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(f) < 20 {
		return stat{}, false
	}
	threads, err1 := strconv.Atoi(string(f[17]))
	start, err2 := strconv.ParseUint(string(f[19]), 10, 64)
	if err1 != nil || err2 != nil {
		return stat{}, false
	}
	state := f[0][0]
	// The first thread may have ended before others. They are counted with it.
	dead := state == 'X' || state == 'x' || state == 'Z' && threads <= 1
	return stat{start: start, dead: dead}, true
}

// ownProc says whether /proc shows our own pid namespace. In a container it may
// be that of the host, with other processes under the same numbers.
var ownProc = sync.OnceValue(func() bool {
	self, err := os.Readlink("/proc/self")
	return err == nil && self == strconv.Itoa(os.Getpid())
})

// bootID names this boot of the kernel; empty if that cannot be read.
var bootID = sync.OnceValue(func() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(b))
})

// Here names where our process numbers count: this boot of the kernel and, after a
// slash, our pid namespace (random(4), pid_namespaces(7)). A process that is named
// with it is not taken for one of another container of the same host. It is the boot
// id alone if the namespace is not known, and empty if that is not.
func Here() string {
	id := bootID()
	var st unix.Stat_t
	if id != "" && unix.Stat("/proc/self/ns/pid", &st) == nil {
		id += "/" + strconv.FormatUint(st.Ino, 10)
	}
	return id
}
