package job

import (
	"bytes"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// kin finds what a command has started from outside, by what its descendants
// inherit: they are below it in the process table, have its mark in their
// environment, or one of its files open. Only a process that has cut all three
// ties is not found: a daemon with an environment of its own and no descriptors.
// But who has been signalled is not lost any more.
//
// For as long as the program exists that runs the command, as a subreaper, and
// that is known, everything is found.
type kin struct {
	master    int // pidfd of that program, -1 if it is not known; it is not found itself
	masterPID int

	root int    // process number of the command
	fd   int    // pidfd of the command, by which it is known whether root is still it
	mark string // as the environment has it: part of the value of markName
	also string // another mark, empty if there is none
	file string // the text of the link in /proc/PID/fd, empty if there is none

	mu   sync.Mutex
	held map[int]int // pidfds of those that were signalled, until they have ended, by number
}

// markName is the variable that carries marks: those of all the jobs that a process
// is part of, with commas between.
const markName = "LOCKER_ID"

// A look can miss a process that is just executing a program, when its environment
// cannot be seen, and one that was forked after the look had begun by one that has
// gone before it was looked at. So what is new is looked at as long as there is any,
// up to maxPasses times, and that there are none takes looks looks in a row.
const (
	looks     = 3
	lookPause = 2 * time.Millisecond
	maxPasses = 30
)

// find lists them.
func (k *kin) find() []process { return k.search(false) }

// search is find. With freeze it stops those that are not known by their parents, so
// that they cannot fork and go before they are killed.
func (k *kin) search(freeze bool) []process {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.locked(freeze)
}

func (k *kin) locked(freeze bool) (found []process) {
	for i := range looks {
		if i > 0 {
			time.Sleep(lookPause)
		}
		if found = k.look(freeze); len(found) > 0 {
			break
		}
	}
	return found
}

func (k *kin) look(freeze bool) (found []process) {
	seen := map[int]bool{os.Getpid(): true}
	add := func(list ...process) {
		for _, p := range list {
			if !seen[p.pid] {
				seen[p.pid] = true
				found = append(found, p)
			}
		}
	}
	if !exited(k.master) {
		seen[k.masterPID] = true
		if all := below(k.masterPID); !exited(k.master) {
			add(all...)
		}
	}
	if k.root > 0 && !exited(k.fd) {
		if p, ok := readProcess(k.root); ok && !exited(k.fd) {
			add(p)
			add(below(k.root)...)
		}
	}
	// They may have lost what they were known by.
	for pid, fd := range k.held {
		if p, ok := readProcess(pid); ok && !exited(fd) {
			add(p)
			add(below(pid)...)
		} else if exited(fd) {
			_ = unix.Close(fd)
			delete(k.held, pid)
		}
	}
	for fresh, passes := true, 0; fresh && passes < maxPasses; passes++ {
		fresh = false
		numbers, err := processNumbers()
		if err != nil {
			break
		}
		for _, pid := range numbers {
			if seen[pid] {
				continue
			}
			fresh = true
			if k.tied(pid) {
				if freeze {
					k.freeze(pid)
				}
				if p, ok := readProcess(pid); ok {
					add(p)
					add(below(pid)...)
				}
			}
			seen[pid] = true
		}
	}
	return found
}

func (k *kin) tied(pid int) bool { return k.marked(pid) || k.opened(pid) }

func (k *kin) freeze(pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if k.tied(pid) { // still, and not another one of that number
		_ = unix.PidfdSendSignal(fd, syscall.SIGSTOP, nil, 0)
	}
}

// maxEnviron is more than execve(2) takes, in bytes. A process can say that more is its own
// (PR_SET_MM of prctl(2)).
const maxEnviron = 6 << 20

func (k *kin) marked(pid int) bool {
	if k.mark == "" && k.also == "" {
		return false
	}
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return false
	}
	defer f.Close()
	env, err := io.ReadAll(io.LimitReader(f, maxEnviron))
	if err != nil {
		return false
	}
	for v := range bytes.SplitSeq(env, []byte{0}) {
		value, ok := bytes.CutPrefix(v, []byte(markName+"="))
		if !ok {
			continue
		}
		for mark := range bytes.SplitSeq(value, []byte(",")) {
			if len(mark) > 0 && (string(mark) == k.mark || string(mark) == k.also) {
				return true
			}
		}
	}
	return false
}

func (k *kin) opened(pid int) bool {
	if k.file == "" {
		return false
	}
	dir := "/proc/" + strconv.Itoa(pid) + "/fd/"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, e := range entries {
		if text, err := os.Readlink(dir + e.Name()); err == nil && text == k.file {
			return true
		}
	}
	return false
}

// signal signals all of them and returns how many were found. Each is held by a
// descriptor before the first is signalled, and until it has ended: the death of a
// parent changes what its children are known by.
func (k *kin) signal(s syscall.Signal) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	found := k.locked(s == syscall.SIGKILL)
	var fds []int
	for _, p := range found {
		if fd, ok := k.hold(p); ok {
			fds = append(fds, fd)
		}
	}
	for _, fd := range fds {
		_ = unix.PidfdSendSignal(fd, s, nil, 0)
	}
	// Who has changed parents meanwhile is one of them still, for the next round.
	return len(found)
}

func (k *kin) hold(p process) (fd int, ok bool) {
	if fd, ok := k.held[p.pid]; ok {
		return fd, true
	}
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		return -1, false
	}
	// The number may have got another owner: look again, behind the descriptor.
	if now, ok := readProcess(p.pid); !ok || now.parent != p.parent && !k.tied(p.pid) {
		_ = unix.Close(fd)
		return -1, false
	}
	if k.held == nil {
		k.held = make(map[int]int)
	}
	k.held[p.pid] = fd
	return fd, true
}

// exited says whether the process of a pidfd has ended. Without one it counts so.
func exited(fd int) bool {
	if fd < 0 {
		return true
	}
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if err == unix.EINTR {
			continue
		}
		return err != nil || n > 0
	}
}

// Mark is the change of the environment by which descendants of a command can be
// found from outside: for [Job.Open], with ids that are words without commas.
func Mark(ids ...string) string {
	id := strings.Join(ids, ",")
	if outer := os.Getenv(markName); outer != "" {
		return markName + "=" + outer + "," + id
	}
	return markName + "=" + id
}

// fileLink is what a file is called in /proc/PID/fd.
func fileLink(f *os.File) string {
	text, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
	if err != nil || !strings.HasPrefix(text, "socket:") && !strings.HasPrefix(text, "pipe:") {
		return "" // a name, which others may have open for reasons of their own
	}
	return text
}
