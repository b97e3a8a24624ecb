package job

import (
	"bytes"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// kin finds what a command has started from outside, by what its descendants
// inherit: they are below it in the process table, have its mark in their
// environment, or one of its files open. Only a process that has cut all three
// ties is not found: a daemon with an environment of its own and no descriptors.
// For as long as the program exists that runs the command, as a subreaper, and
// that is known, everything is found.
type kin struct {
	master    int // pidfd of that program, -1 if it is not known; it is not found itself
	masterPID int

	root int    // process number of the command
	fd   int    // pidfd of the command, by which it is known whether root is still it
	mark string // as the environment has it: part of the value of markName
	file string // the text of the link in /proc/PID/fd, empty if there is none
}

// markName is the variable that carries marks: those of all the jobs that a process
// is part of, with commas between.
const markName = "LOCKER_ID"

// A look can miss a process that is just executing a program, when its environment
// cannot be seen, and one that was forked after the look had begun by one that has
// gone before it was looked at. That they are none takes looks looks in a row.
const (
	looks     = 3
	lookPause = 2 * time.Millisecond
)

// find lists them.
func (k *kin) find() (found []process) {
	for i := range looks {
		if i > 0 {
			time.Sleep(lookPause)
		}
		if found = k.look(); len(found) > 0 {
			break
		}
	}
	return found
}

func (k *kin) look() []process {
	var found []process
	seen := map[int]bool{os.Getpid(): true}
	add := func(p process) {
		if !seen[p.pid] {
			seen[p.pid] = true
			found = append(found, p)
		}
	}
	if !exited(k.master) {
		seen[k.masterPID] = true
		if all := below(k.masterPID); !exited(k.master) {
			for _, p := range all {
				add(p)
			}
		}
	}
	if k.root > 0 && !exited(k.fd) {
		if p, ok := readProcess(k.root); ok && !exited(k.fd) {
			add(p)
			for _, p := range below(k.root) {
				add(p)
			}
		}
	}
	names, err := processNumbers()
	if err != nil {
		return found
	}
	for _, pid := range names {
		if seen[pid] || !k.marked(pid) && !k.opened(pid) {
			continue
		}
		if p, ok := readProcess(pid); ok {
			add(p)
			for _, p := range below(pid) {
				add(p)
			}
		}
	}
	return found
}

func (k *kin) marked(pid int) bool {
	if k.mark == "" {
		return false
	}
	env, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return false
	}
	for v := range bytes.SplitSeq(env, []byte{0}) {
		value, ok := bytes.CutPrefix(v, []byte(markName+"="))
		if ok && slices.Contains(strings.Split(string(value), ","), k.mark) {
			return true
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
// descriptor before the first is signalled: the death of a parent changes what its
// children are known by.
func (k *kin) signal(s syscall.Signal) int {
	var fds []int
	found := k.find()
	for _, p := range found {
		fd, err := unix.PidfdOpen(p.pid, 0)
		if err != nil {
			continue
		}
		// The number may have got another owner: look again, behind the descriptor.
		now, ok := readProcess(p.pid)
		if ok && (now.parent == p.parent || k.marked(p.pid) || k.opened(p.pid)) {
			fds = append(fds, fd)
			continue
		}
		_ = unix.Close(fd)
	}
	for _, fd := range fds {
		_ = unix.PidfdSendSignal(fd, s, nil, 0)
		_ = unix.Close(fd)
	}
	// Who has changed parents meanwhile is one of them still, for the next round.
	return len(found)
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
// found from outside: for [Job.Open], with an id that is a word without commas.
func Mark(id string) string {
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
