package freezer

import (
	"bufio"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// settleDown makes a guard independent of what it may freeze: its memory stays in
// memory, it is the last to be killed for want of memory, and it has no directory
// open. What it may not do is in the warnings.
func settleDown() (warnings []string, err error) {
	warn := func(consequence string, err error) {
		if err != nil {
			warnings = append(warnings, fmt.Sprintf("%s: %v", consequence, err))
		}
	}
	if err := os.Chdir("/"); err != nil {
		return nil, err
	}
	// That of the main thread is the process's name.
	if err := os.WriteFile("/proc/self/comm", []byte(guardName), 0); err != nil {
		return nil, fmt.Errorf("set the guard's name: %w", err)
	}
	warn("the guard can be killed for want of memory", os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0))
	warn("the guard may have to wait for a processor", goFirst())
	warn("the guard can hold few processes", raiseFiles())
	// Nearly nothing of what is mapped is ever used: without MCL_ONFAULT the runtime's
	// reserves would take 40 MB.
	warn("the guard can be swapped out", unix.Mlockall(unix.MCL_CURRENT|unix.MCL_FUTURE|unix.MCL_ONFAULT))
	if err := loadProgram(); err != nil {
		return nil, err
	}
	// A guard does little, and then a pause is of no use to anybody. The limit is for
	// one that lives long and is asked often.
	debug.SetMemoryLimit(maxMemory)
	debug.SetGCPercent(-1)
	return warnings, nil
}

// goFirst lets all threads of the guard, and those that they will start, run before
// what they are to stop: among hundreds of busy processes a guard would otherwise be
// one of many (sched(7)).
func goFirst() error {
	var failed error
	for range 2 { // a thread may have started another meanwhile
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		for _, t := range threads {
			tid, _ := number([]byte(t.Name()), 31)
			attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 1}
			if err := unix.SchedSetAttr(int(tid), &attr, 0); err != nil && err != unix.ESRCH {
				// There may be no real-time share for our cgroup.
				if nice := unix.Setpriority(unix.PRIO_PROCESS, int(tid), -20); nice != nil {
					failed = err
				}
			}
		}
	}
	return failed
}

const maxMemory = 256 << 20

// raiseFiles allows as many descriptors as the kernel does: two for each process.
func raiseFiles() error {
	text, err := os.ReadFile("/proc/sys/fs/nr_open")
	if err != nil {
		return err
	}
	most, _ := number(text, 64)
	err = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: most, Max: most})
	if err == nil {
		return nil
	}
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		limit.Cur = limit.Max
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	}
	return fmt.Errorf("open files are limited to %d: %w", limit.Cur, err)
}

// loadProgram reads the program into memory, where it is to stay: later the disk may
// not answer.
func loadProgram() error {
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer maps.Close()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to uintptr
		var mode string
		if !strings.HasSuffix(lines.Text(), " "+exe) {
			continue
		}
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); err != nil || mode[0] != 'r' {
			continue
		}
		// Not for writing: nothing is copied that would not have been.
		_, _, errno := unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_POPULATE_READ)
		if errno != 0 && errno != unix.EINVAL { // the kernel is older than 5.14
			return fmt.Errorf("read the program into memory: %w", errno)
		}
	}
	return nil
}

// titleRoom is how long a title may be: so long is the first argument of a guard.
const titleRoom = 120

// setTitle writes what ps shows over the first argument, which has titleRoom bytes in
// a guard.
func setTitle(text string) {
	room := unsafe.Slice(unsafe.StringData(os.Args[0]), len(os.Args[0]))
	if len(os.Args) != 1 || len(room) != titleRoom {
		return // it is not our own
	}
	clear(room[copy(room[:titleRoom-1], text):])
}
