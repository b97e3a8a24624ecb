package freezer

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroup freezes a cgroup by the kernel's freezer (cgroup.freeze in the kernel's
// Documentation/admin-guide/cgroup-v2.rst). No process of it notices anything, nor
// does anybody's parent; and what is forked meanwhile is frozen as well.
type cgroup struct {
	path           string
	inode          uint64
	dir            *os.File
	control, event int    // cgroup.freeze and cgroup.events
	changed        bool   // by us, and to be undone
	held           bool   // it is frozen, by us or as it was before
	thawed         string // what somebody else has thawed of it before us
}

// openCgroup opens a cgroup in which none of the processes is that are spared.
func openCgroup(path string, spared []int32, proc *procfs) (*cgroup, error) {
	path = filepath.Clean(path)
	dir, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoTarget, err)
	}
	c := &cgroup{path: path, dir: dir, control: -1, event: -1}
	if err := c.open(spared, proc); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *cgroup) open(spared []int32, proc *procfs) (err error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(c.dir.Fd()), &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return fmt.Errorf("%w: %s is no cgroup of version 2", ErrNoTarget, c.path)
	}
	if c.inode, err = inode(c.dir); err != nil {
		return err
	}
	c.control, err = unix.Openat(int(c.dir.Fd()), "cgroup.freeze", unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case err == unix.ENOENT:
		return fmt.Errorf("%w: %s cannot be frozen: it is the root, or the kernel is older than 5.2", ErrNoTarget, c.path)
	case err == unix.EACCES || err == unix.EPERM:
		return fmt.Errorf("%w: %s: %w", ErrPermission, c.path, err)
	case err != nil:
		return fmt.Errorf("open cgroup.freeze of %s: %w", c.path, err)
	}
	c.event, err = unix.Openat(int(c.dir.Fd()), "cgroup.events", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open cgroup.events of %s: %w", c.path, err)
	}
	for _, pid := range spared {
		home, err := cgroupOf(proc, pid)
		if vanished(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("find the cgroup of process %d: %w", pid, err)
		}
		for dir := home; ; dir = filepath.Dir(dir) { // by inode: there may be other paths
			var st unix.Stat_t
			if unix.Stat(dir, &st) == nil && st.Ino == c.inode {
				return fmt.Errorf("%w: process %d is in cgroup %s", ErrSelf, pid, c.path)
			}
			if len(dir) <= 1 {
				break
			}
		}
	}
	return nil
}

func inode(f *os.File) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	return st.Ino, nil
}

// freeze returns when all is frozen. What still runs when patience has passed is
// unstoppable, and in the report.
func (c *cgroup) freeze(ctx context.Context, o *Order, note func(...entry) error, proc *procfs, r *Report) error {
	running, err := c.toldToRun()
	if err != nil {
		return err
	}
	if running { // else it is not ours to thaw
		if err := note(entry{kind: entryCgroup, inode: c.inode, path: c.path}); err != nil {
			return err
		}
		c.changed = true
		if err := c.write("1"); err != nil {
			return err
		}
		r.Cgroups = append(r.Cgroups, c.path)
	}
	for until := time.Now().Add(max(o.patience(), time.Second)); ; {
		frozen, err := isFrozen(c.event)
		if err != nil {
			return err
		}
		if frozen {
			c.held = true
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if time.Now().After(until) {
			err := c.unfinished(o, proc, r)
			c.held = err == nil
			return err
		}
		// POLLPRI comes with a change after the last reading.
		polls := []unix.PollFd{{Fd: int32(c.event), Events: unix.POLLPRI}}
		if _, err := unix.Poll(polls, 20); err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for %s: %w", c.path, err)
		}
	}
}

// unfinished reports what keeps a cgroup from being frozen.
func (c *cgroup) unfinished(o *Order, proc *procfs, r *Report) error {
	found := 0
	for _, pid := range members(c.path) {
		if s, err := proc.stat(pid); err == nil && s.state == 'D' {
			found++
			r.miss(Process{
				PID: int(s.pid), Parent: int(s.parent), Start: s.start,
				State: "D", Name: proc.name(pid), Why: "is in uninterruptible sleep",
			})
		}
	}
	if o.Partial {
		if found == 0 {
			r.Running++
		}
		return nil
	}
	return fmt.Errorf("%w: %d processes of cgroup %s are in uninterruptible sleep", ErrUnstoppable, found, c.path)
}

// members lists the processes of a cgroup and all below it.
func members(path string) (pids []int32) {
	_ = filepath.WalkDir(path, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return nil
		}
		f, err := os.Open(p)
		if err != nil {
			return nil // it has gone
		}
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if pid, ok := number(lines.Bytes(), 31); ok && pid > 0 {
				pids = append(pids, int32(pid))
			}
		}
		return nil
	})
	return pids
}

// toldToRun reads cgroup.freeze.
func (c *cgroup) toldToRun() (bool, error) {
	var text [8]byte
	n, err := unix.Pread(c.control, text[:], 0)
	if err != nil {
		return false, fmt.Errorf("read cgroup.freeze of %s: %w", c.path, err)
	}
	return strings.TrimSpace(string(text[:n])) == "0", nil
}

// disturbed says whether somebody else has thawed it. The kernel takes one for not
// frozen as well in the moment in which a process of it is killed, or is moved to it;
// but then cgroup.freeze stays as it was. Whoever thaws and freezes again before we have
// looked is not noticed.
func (c *cgroup) disturbed() string {
	// Whoever polls for a change wants to have read what was before.
	if _, err := isFrozen(c.event); err != nil {
		return "" // it was removed, and was empty
	}
	if running, err := c.toldToRun(); err != nil || !running {
		return ""
	}
	return "cgroup " + OneLine(c.path)
}

// thaw undoes freeze.
func (c *cgroup) thaw() error {
	if c.held && c.thawed == "" {
		c.thawed = c.disturbed()
	}
	c.held = false
	if !c.changed {
		return nil
	}
	err := c.write("0")
	if errors.Is(err, unix.ENODEV) { // it was removed
		err = nil
	}
	c.changed = err != nil
	return err
}

func (c *cgroup) write(text string) error {
	if _, err := unix.Pwrite(c.control, []byte(text), 0); err != nil {
		return fmt.Errorf("write %s to cgroup.freeze of %s: %w", text, c.path, err)
	}
	return nil
}

func (c *cgroup) close() {
	_ = c.dir.Close()
	for _, fd := range []int{c.control, c.event} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// isFrozen reads a cgroup.events.
func isFrozen(event int) (bool, error) {
	var buf [256]byte
	n, err := unix.Pread(event, buf[:], 0)
	if err != nil {
		return false, fmt.Errorf("read cgroup.events: %w", err)
	}
	return bytes.Contains(buf[:n], []byte("frozen 1")), nil
}

// cgroupOf is the directory of the cgroup of version 2 of a process.
func cgroupOf(proc *procfs, pid int32) (string, error) {
	text, err := proc.text(pid, "cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		// proc_pid_cgroup(5): hierarchy 0 is that of version 2.
		if rest, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			mount, err := cgroupMount()
			if err != nil {
				return "", err
			}
			return filepath.Join(mount, rest), nil
		}
	}
	return "", errors.New("there are no cgroups of version 2")
}

// cgroupMount is where the cgroups of version 2 are mounted (proc_pid_mountinfo(5)).
func cgroupMount() (string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		before, after, ok := strings.Cut(line, " - ")
		f := strings.Fields(before)
		if ok && len(f) > 4 && f[3] == "/" && strings.HasPrefix(after, "cgroup2 ") {
			return unescape(f[4]), nil
		}
	}
	return "", errors.New("no cgroups of version 2 are mounted")
}

// unescape undoes the \040 for a blank in a path.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// inFrozenCgroup says whether a process does not run because its cgroup is frozen.
// For proc_pid_stat(5) it sleeps.
func inFrozenCgroup(proc *procfs, pid int32) bool {
	dir, err := cgroupOf(proc, pid)
	if err != nil {
		return false
	}
	fd, err := unix.Open(dir+"/cgroup.events", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	frozen, err := isFrozen(fd)
	return err == nil && frozen
}
