package freezer

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Guards of other pid namespaces, as of containers, may use the same directory, and die
// with their namespace. That they live is told by the locks of their journals, which the
// kernel drops at their death, wherever that is; and by these they are found as well: the
// kernel lists who has a lock (proc_locks(5)) with the number that it has in our namespace.

// foreign says that the process numbers in a journal are of another pid namespace.
func (r *record) foreign() bool { return r.PIDNS != pidNamespace() }

// locate gives the guard of a foreign journal the number that it has in our namespace. If it
// has none, it keeps its own, and is unseen.
func (r *record) locate(journal *os.File) {
	if !r.foreign() {
		return
	}
	r.unseen = true
	proc, err := openProc()
	if err != nil {
		return
	}
	defer proc.close()
	var st unix.Stat_t
	if unix.Fstat(int(journal.Fd()), &st) != nil {
		return
	}
	for _, l := range proc.locks() {
		if l.dev != st.Dev || l.inode != st.Ino {
			continue
		}
		if s, err := proc.stat(l.pid); err == nil && s.start == r.Guard.start && proc.isGuard(&s) {
			r.Guard, r.unseen = process{s.pid, s.start}, false
			return
		}
	}
}

// fileLock is a lock of flock(2) that a process has alone.
type fileLock struct {
	pid        int32
	dev, inode uint64
}

// maxLocks bounds the text of /proc/locks, in bytes.
const maxLocks = 4 << 20

// locks lists the locks of flock(2) that processes of our pid namespace, and of those below,
// have alone.
func (p *procfs) locks() (all []fileLock) {
	text, err := p.whole("locks", maxLocks)
	if err != nil {
		return nil // the kernel has none
	}
	for line := range strings.Lines(string(text)) {
		if l, ok := parseLock(line); ok {
			all = append(all, l)
		}
	}
	return all
}

// parseLock reads a line such as "3: FLOCK  ADVISORY  WRITE 4711 00:19:1403 0 EOF".
func parseLock(line string) (l fileLock, ok bool) {
	f := strings.Fields(line)
	if len(f) < 6 || f[1] != "FLOCK" || f[3] != "WRITE" {
		return l, false
	}
	file := strings.Split(f[5], ":")
	if len(file) != 3 {
		return l, false
	}
	pid, err1 := strconv.ParseInt(f[4], 10, 32)
	major, err2 := strconv.ParseUint(file[0], 16, 32)
	minor, err3 := strconv.ParseUint(file[1], 16, 32)
	inode, err4 := strconv.ParseUint(file[2], 10, 64)
	if err1 != nil || err2 != nil || err3 != nil || err4 != nil || pid < 1 {
		return l, false
	}
	return fileLock{int32(pid), unix.Mkdev(uint32(major), uint32(minor)), inode}, true
}

// isGuard says whether a process is a guard, of whatever directory: it is called so, and
// root has started it.
func (p *procfs) isGuard(s *stat) bool {
	if !s.guard {
		return false
	}
	text, err := p.text(s.pid, "status")
	return err == nil && bytes.Contains(text, []byte("\nUid:\t0\t"))
}

// holding lists the guards that have a journal, in our pid namespace and in those below.
func (p *procfs) holding() (all []process) {
	for _, l := range p.locks() {
		if s, err := p.stat(l.pid); err == nil && p.isGuard(&s) {
			all = append(all, process{s.pid, s.start})
		}
	}
	return all
}

// firstPIDNamespace is the number of the one that the kernel has begun with, from which all
// processes can be seen (PROC_PID_INIT_INO of include/linux/proc_ns.h).
const firstPIDNamespace = 0xEFFFFFFC

// extinct says whether it is certain that no process of a pid namespace lives.
func (p *procfs) extinct(namespace uint64) bool {
	return pidNamespace() == firstPIDNamespace && !p.populates(namespace)
}

// populates says whether some process that can be seen may be in a pid namespace.
func (p *procfs) populates(namespace uint64) (found bool) {
	err := p.list(func(pids []int32) {
		for _, pid := range pids {
			var st unix.Stat_t
			err := unix.Fstatat(p.fd, fmt.Sprintf("%d/ns/pid", pid), &st, 0)
			found = found || err == nil && st.Ino == namespace || err != nil && !vanished(err)
		}
	})
	return found || err != nil
}
