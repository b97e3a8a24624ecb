package job

import (
	"bytes"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// process is a line of the process table.
type process struct{ pid, parent, group int }

// descendants lists all living descendants of this process, parents first.
func descendants() []process { return below(os.Getpid()) }

// below lists the living descendants of a process, parents first.
func below(root int) []process {
	numbers, err := processNumbers()
	if err != nil {
		return nil
	}
	children := make(map[int][]process)
	for _, pid := range numbers {
		if p, ok := readProcess(pid); ok {
			children[p.parent] = append(children[p.parent], p)
		}
	}
	var all []process
	next := []int{root}
	for len(next) > 0 {
		kids := children[next[0]]
		// The table was not read at one instant, so reused numbers could make it
		// circular. Each parent counts once.
		delete(children, next[0])
		next = next[1:]
		for _, p := range kids {
			all = append(all, p)
			next = append(next, p.pid)
		}
	}
	return all
}

// processNumbers lists the processes that can be seen.
func processNumbers() ([]int, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var numbers []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			numbers = append(numbers, pid)
		}
	}
	return numbers, nil
}

// remains counts the descendants in our session.
func remains() int {
	session, err := unix.Getsid(0)
	if err != nil {
		return 0
	}
	n := 0
	for _, p := range descendants() {
		if s, err := unix.Getsid(p.pid); err == nil && s == session {
			n++
		}
	}
	return n
}

// readProcess reads /proc/PID/stat (proc_pid_stat(5)), fields 3 to 5. It has no
// zombies: they are past signals.
func readProcess(pid int) (process, bool) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return process{}, false
	}
	// The name in field 2 may itself have blanks and parentheses.
	end := bytes.LastIndexByte(text, ')')
	if end < 0 {
		return process{}, false
	}
	fields := bytes.Fields(text[end+1:])
	if len(fields) < 3 || fields[0][0] == 'Z' || fields[0][0] == 'X' {
		return process{}, false
	}
	parent, err := strconv.Atoi(string(fields[1]))
	if err != nil {
		return process{}, false
	}
	group, err := strconv.Atoi(string(fields[2]))
	if err != nil {
		return process{}, false
	}
	return process{pid: pid, parent: parent, group: group}, true
}

// signal signals the process that was found, and no later one of that number: the
// descriptor is for one process, and the second look is at that one.
func (p process) signal(s syscall.Signal) {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		// Kernels before 5.3 have no pidfd. Otherwise it has gone.
		if err == unix.ENOSYS {
			_ = syscall.Kill(p.pid, s)
		}
		return
	}
	defer unix.Close(fd)
	now, ok := readProcess(p.pid)
	if !ok || now.parent != p.parent && now.parent != os.Getpid() {
		return
	}
	_ = unix.PidfdSendSignal(fd, s, nil, 0)
}

func lockThread() (unlock func()) {
	runtime.LockOSThread()
	return runtime.UnlockOSThread
}
