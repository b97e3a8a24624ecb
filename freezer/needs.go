package freezer

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Who has to thaw needs more than to run: what it writes, as its log, must not wait for
// what is frozen.

// openForWriting lists files that this process may write to, one of each file system.
func openForWriting() (paths []string) {
	seen := map[uint64]bool{} // one of each file system will do
	eachOwnFile(func(fd int, st *unix.Stat_t, name string) {
		if st.Mode&unix.S_IFMT == unix.S_IFREG && strings.HasPrefix(name, "/") && !seen[st.Dev] && writable(fd) {
			seen[st.Dev] = true
			paths = append(paths, name)
		}
	})
	return paths
}

// readers lists the processes that read what this one writes to its standard output and
// error output, if these are pipes.
func (p *procfs) readers() (pids []int, err error) {
	pipes := map[string]bool{}
	eachOwnFile(func(fd int, st *unix.Stat_t, name string) {
		if fd < 3 && st.Mode&unix.S_IFMT == unix.S_IFIFO && writable(fd) {
			pipes[name] = true
		}
	})
	if len(pipes) == 0 {
		return nil, nil
	}
	err = p.list(func(all []int32) {
		for _, pid := range all {
			if int(pid) != os.Getpid() && p.reads(pid, pipes) {
				pids = append(pids, int(pid))
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("find the readers of our pipes: %w", err)
	}
	return pids, nil
}

// reads says whether a process reads from one of some pipes. They are named as by
// /proc/PID/fd (proc_pid_fd(5)).
func (p *procfs) reads(pid int32, pipes map[string]bool) bool {
	dir := "/proc/" + strconv.Itoa(int(pid))
	names, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return false // it has ended
	}
	return slices.ContainsFunc(names, func(n os.DirEntry) bool {
		name, err := os.Readlink(dir + "/fd/" + n.Name())
		if err != nil || !pipes[name] {
			return false
		}
		// proc_pid_fdinfo(5): flags are octal.
		text, err := os.ReadFile(dir + "/fdinfo/" + n.Name())
		if err != nil {
			return false
		}
		for line := range strings.Lines(string(text)) {
			if octal, ok := strings.CutPrefix(line, "flags:"); ok {
				flags, err := strconv.ParseUint(strings.TrimSpace(octal), 8, 64)
				return err == nil && flags&unix.O_ACCMODE != unix.O_WRONLY
			}
		}
		return false
	})
}

// lineage adds to processes all that they descend from.
func (p *procfs) lineage(pids []int) (all []int) {
	known := map[int32]bool{}
	for _, pid := range pids {
		for at := int32(pid); at > 1 && !known[at]; {
			st, err := p.stat(at)
			if err != nil {
				break
			}
			known[at] = true
			all = append(all, int(at))
			at = st.parent
		}
	}
	return all
}

func eachOwnFile(each func(fd int, st *unix.Stat_t, name string)) {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, n := range names {
		fd, err := strconv.Atoi(n.Name())
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil {
			continue // ReadDir's own
		}
		if name, err := os.Readlink("/proc/self/fd/" + n.Name()); err == nil {
			each(fd, &st, name)
		}
	}
}

func writable(fd int) bool {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_ACCMODE != unix.O_RDONLY
}
