package versus

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/jepsen/proc"
)

// stopWait bounds how long signals may take to stop all of a family.
const stopWait = 5 * time.Second

// parseStat reads fields 3 and 4 of proc_pid_stat(5).
func parseStat(b []byte) (state byte, parent int, ok bool) {
	s := string(b)
	// The name before may have blanks and parentheses in it.
	i := strings.LastIndexByte(s, ')')
	if i < 0 {
		return 0, 0, false
	}
	f := strings.Fields(s[i+1:])
	if len(f) < 2 || len(f[0]) != 1 {
		return 0, 0, false
	}
	parent, err := strconv.Atoi(f[1])
	return f[0][0], parent, err == nil
}

// lives says whether a process is there and not just unreaped.
func lives(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	state, _, ok := parseStat(b)
	return ok && state != 'Z' && state != 'X'
}

// family is a process and all that descend from it, parents before children.
func family(root int) []int {
	parents := map[int]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is sound
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		pid, err := strconv.Atoi(strings.Split(path, "/")[2])
		if _, parent, ok := parseStat(b); ok && err == nil {
			parents[pid] = parent
		}
	}
	return descend(root, parents)
}

func descend(root int, parents map[int]int) []int {
	all := []int{root}
	for i := 0; i < len(all); i++ {
		var children []int
		for pid, parent := range parents {
			if parent == all[i] && pid != all[i] {
				children = append(children, pid)
			}
		}
		slices.Sort(children)
		all = append(all, children...)
	}
	return all
}

// stopAll stops a family: the lock client first, which could react to a stop of its
// command. It returns when no thread of them runs any more.
func stopAll(root int) error {
	sent := map[int]bool{}
	for end := time.Now().Add(stopWait); time.Now().Before(end); time.Sleep(time.Millisecond) {
		moving := false
		for _, pid := range family(root) {
			if !sent[pid] {
				if err := unix.Kill(pid, unix.SIGSTOP); err != nil && !errors.Is(err, unix.ESRCH) {
					return fmt.Errorf("stop process %d: %w", pid, err)
				}
				sent[pid], moving = true, true // look again: it may have had another child
			}
			moving = moving || !proc.Stopped(pid)
		}
		if !moving {
			return nil
		}
	}
	return fmt.Errorf("process %d and its children did not stop within %v", root, stopWait)
}

// continueAll ends stopAll: children first, so that no lock client sees its command
// stopped.
func continueAll(root int) {
	all := family(root)
	slices.Reverse(all)
	for _, pid := range all {
		_ = unix.Kill(pid, unix.SIGCONT) // it may be gone
	}
}

// kill sends SIGKILL to each. Whoever is gone is dead enough.
func kill(pids ...int) {
	for _, pid := range pids {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// bury reaps killed processes that became our children when their parents died. Of
// others it knows nothing.
func bury(pids []int) {
	for _, pid := range pids {
		for {
			if _, err := unix.Wait4(pid, nil, 0, nil); !errors.Is(err, unix.EINTR) {
				break
			}
		}
	}
}
