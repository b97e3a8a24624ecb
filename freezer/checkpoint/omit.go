package checkpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Omit says whether a later checkpoint is to leave out the process that restarted the
// job and is its parent now.
type Omit string

const (
	OmitMaybe  Omit = "maybe"  // if it is the eldest of what is checkpointed
	OmitAlways Omit = "always" // or else fail
	OmitNever  Omit = "never"
)

// markPattern is the name of a file in memory that a restarting process has open, where
// /proc shows it for as long as that process lives.
const markPattern = "cr_restart omit=%s job=%d"

// Mark tells later checkpoints of this process, which waits for the job, whether to
// leave it out.
func (j *Job) Mark(omit Omit) error {
	fd, err := unix.MemfdCreate(fmt.Sprintf(markPattern, omit, j.Manifest.Root), unix.MFD_CLOEXEC)
	if err != nil {
		return classed(err, "make a mark for later checkpoints")
	}
	j.mark = os.NewFile(uintptr(fd), "mark")
	return nil
}

// mark reads the mark of a process.
func mark(pid int) (omit Omit, job int, ok bool) {
	dir := "/proc/" + strconv.Itoa(pid) + "/fd"
	names, err := os.ReadDir(dir)
	if err != nil {
		return "", 0, false
	}
	for _, n := range names {
		link, _ := os.Readlink(dir + "/" + n.Name())
		text, isMark := strings.CutPrefix(link, "/memfd:cr_restart ")
		if !isMark {
			continue
		}
		text = strings.TrimSuffix(text, " (deleted)")
		if k, err := fmt.Sscanf(text, "omit=%s job=%d", &omit, &job); k == 2 && err == nil {
			return omit, job, true
		}
	}
	return "", 0, false
}

// omitted is the process to begin with instead of root, which may be one that waits
// for a restarted job.
func omitted(all table, root int) (int, error) {
	if omit, job, ok := mark(root); ok && omit != OmitNever && all[job].parent == root {
		return job, nil
	}
	for pid := range all {
		if pid == root || !all.below(pid, root) {
			continue
		}
		if omit, _, ok := mark(pid); ok && omit == OmitAlways {
			return 0, fail(Args, syscall.EINVAL, "process %d is to be left out, and only the eldest process can be: checkpoint its child", pid)
		}
	}
	return root, nil
}
