package executor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lockerd/lockerd/freezer/checkpoint"
)

// save prepares a checkpoint.
func (x *Executor) save(ctx context.Context, order uint64, s CheckpointSpec, locks Locks) (run func(context.Context) (string, error), err error) {
	o := checkpoint.Order{File: s.File, Compress: s.Zstd}
	switch {
	case (s.PID != 0) == (s.Lock != ""):
		return nil, errors.New("what? name either a process or a lock")
	case s.PID < 0:
		return nil, fmt.Errorf("%d is no process", s.PID)
	}
	if err := checkFile(s.File); err != nil {
		return nil, err
	}
	switch s.After {
	case "", "run":
		if s.Suspend && s.After != "" {
			return nil, errors.New("a job whose lock is suspended cannot run on")
		}
	case "stop":
		o.Signal = syscall.SIGSTOP
	case "kill":
		o.Signal = syscall.SIGKILL
	default:
		return nil, fmt.Errorf("after a checkpoint a job is to run, stop or kill, and not %q", s.After)
	}
	if s.Suspend {
		if s.After == "stop" {
			return nil, errors.New("a job whose lock is suspended is ended, and cannot be stopped")
		}
		// There must not be two of the file for one lock.
		o.Signal, o.Exclusive = syscall.SIGKILL, true
	}
	if st, err := os.Stat(filepath.Dir(s.File)); err != nil || !st.IsDir() {
		return nil, fmt.Errorf("there is no directory %s on this node", filepath.Dir(s.File))
	}
	if _, err := os.Lstat(s.File); err == nil && s.Suspend {
		return nil, fmt.Errorf("%s is there already, and may be somebody's job", s.File)
	}
	hold, err := find(ctx, s, locks)
	if err != nil {
		return nil, err
	}
	pid := s.PID
	if pid == 0 {
		pid = hold.PID
	}
	if pid, err = jobOf(pid, hold); err != nil {
		return nil, err
	}
	start, err := startOf(pid)
	if err != nil {
		return nil, fmt.Errorf("process %d has ended", pid)
	}
	if s.Suspend {
		if err := only(ctx, locks, append(tree(pid), above(pid)...), hold); err != nil {
			return nil, err
		}
	}
	o.Target = checkpoint.Tree(pid)
	if o.CRIU, err = checkpoint.Find(ctx); err != nil {
		return nil, err
	}
	if hold != nil {
		for _, name := range hold.Locks {
			o.Locks = append(o.Locks, checkpoint.Lock{Name: name, Owner: hold.Owner, Mode: hold.Mode, Fence: hold.Fence})
		}
	}
	return func(ctx context.Context) (string, error) {
		if now, err := startOf(pid); err != nil || now != start { // the others may have taken their time
			return "", fmt.Errorf("process %d has ended", pid)
		}
		forget, err := x.note(order, filepath.Dir(s.File))
		if err != nil {
			return "", err
		}
		defer forget()
		release, err := holdCommits(ctx, pid)
		if err != nil {
			return "", err
		}
		defer release()
		o := o
		if o.Signal == 0 {
			o.Copied = release
		}
		if !s.Suspend {
			r, err := checkpoint.Checkpoint(ctx, o)
			if err != nil {
				return "", advised(err, pid)
			}
			return said(r, o.Signal), nil
		}
		o.Suspended = true
		a := &suspension{order: order, locks: locks, hold: hold, file: s.File}
		o.Safe = func(m *checkpoint.Manifest) error {
			a.manifest = m
			return x.suspend(ctx, a)
		}
		r, err := checkpoint.Checkpoint(ctx, o)
		switch {
		case !a.kept:
			return "", advised(err, pid)
		case err != nil:
			// CRIU was to end the job. It may have been ended by who had the lock.
			x.log("the job was not ended by CRIU", "order", order, "file", s.File, "error", err)
		}
		ended := make(chan struct{})
		x.work.Go(func() {
			defer close(ended)
			x.end(x.ctx, a)
		})
		text := fmt.Sprintf("; %s is suspended, with fence %d", strings.Join(hold.Locks, " "), hold.Fence)
		select {
		case <-ended:
			text = ", ended" + text
		case <-ctx.Done():
			return "", fmt.Errorf("the job is in %s%s; it was killed, and is not known to have ended", s.File, text)
		}
		if r == nil {
			return plural(len(a.manifest.Processes)) + text, nil
		}
		return size(r) + text, nil
	}, nil
}

// runnerName is what a process of lockersh is called that can checkpoint its child.
const runnerName = "lockersh-batch"

// advised says what to do about a command of lockersh that has a connection: what it has
// inherited of lockersh is one, unless there is a runner between them.
func advised(err error, pid int) error {
	if !errors.Is(err, syscall.ENOTCONN) {
		return err
	}
	if p, e := parentOf(pid); e == nil && isLockersh(p) && nameOf(p) != runnerName {
		return fmt.Errorf("process %d has inherited a connection of lockersh, which cannot be saved: start it with lockersh --checkpointable", pid)
	}
	return fmt.Errorf("%w; only cr_checkpoint on its host has options for that", err)
}

// said tells of a checkpoint.
func said(r *checkpoint.Report, sig syscall.Signal) string {
	text := size(r)
	switch sig {
	case syscall.SIGKILL:
		text += ", ended"
	case syscall.SIGSTOP:
		text += ", stopped"
	default:
		text += fmt.Sprintf(", stood still for %v", r.Pause.Round(time.Millisecond))
	}
	return text
}

func size(r *checkpoint.Report) string {
	return fmt.Sprintf("%s, %.1f MB", plural(len(r.Manifest.Processes)), float64(r.Size)/1e6)
}

func plural(n int) string {
	if n == 1 {
		return "1 process"
	}
	return strconv.Itoa(n) + " processes"
}

// find finds the hold of the lock, or of the process if its lock is to be suspended. It is
// nil if there is none, and none is needed.
func find(ctx context.Context, s CheckpointSpec, locks Locks) (*Hold, error) {
	if s.Lock == "" && !s.Suspend {
		return nil, nil
	}
	holds, err := locks.Holds(ctx, s.Lock)
	if err != nil {
		return nil, err
	}
	if s.Lock == "" {
		pids := tree(s.PID)
		for _, h := range holds {
			if !h.Over && !h.Suspended && slices.Contains(pids, h.PID) {
				return &h, nil // if it is not the only one, that is refused later
			}
		}
		return nil, fmt.Errorf("process %d, with what it has started, holds no lock that could be suspended", s.PID)
	}
	switch {
	case len(holds) == 0:
		return nil, fmt.Errorf("nobody holds %s", s.Lock)
	case len(holds) > 1:
		return nil, fmt.Errorf("%s has %d holders: name the process", s.Lock, len(holds))
	}
	switch h := holds[0]; {
	case h.Suspended:
		return nil, fmt.Errorf("%s is suspended already by %s: its job is in %s", s.Lock, h.By, h.Context)
	case h.Over:
		return nil, fmt.Errorf("%s is held by process %d of a time before this host was started anew", s.Lock, h.PID)
	case h.PID == 0:
		return nil, fmt.Errorf("%s is held by %s, and it is not known by which process", s.Lock, h.Owner)
	case !h.Here:
		return nil, fmt.Errorf("%s is held by process %d of %s, and that is not this host", s.Lock, h.PID, h.Host)
	default:
		return &h, nil
	}
}

// jobOf is the process to begin with: of a lockersh that waits for all that its command
// has started, that command, as its own connection could not be saved.
func jobOf(pid int, hold *Hold) (int, error) {
	start, err := startOf(pid)
	if err != nil {
		return 0, fmt.Errorf("there is no process %d on this node", pid)
	}
	if hold != nil && hold.PID == pid && hold.Start != 0 && hold.Start != start {
		return 0, fmt.Errorf("process %d has ended, and its number is another's", pid)
	}
	if !isLockersh(pid) {
		return pid, nil
	}
	all, err := children(pid)
	if err != nil || len(all) != 1 {
		return 0, fmt.Errorf("process %d is lockersh, which cannot be saved itself, and has %d children: name the one", pid, len(all))
	}
	return all[0], nil
}

// isLockersh says whether a process is a lockersh, be it as the runner of a job.
func isLockersh(pid int) bool {
	exe, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
	return err == nil && filepath.Base(strings.TrimSuffix(exe, " (deleted)")) == "lockersh" // it may have been replaced
}

// above are the lockershs that a process is the command of, the one within the other: they
// end with it.
func above(pid int) (all []int) {
	for p, err := parentOf(pid); err == nil && isLockersh(p); p, err = parentOf(p) {
		all = append(all, p)
	}
	return all
}

// nameOf is what a process calls itself, in its first argument.
func nameOf(pid int) string {
	text, _ := readText(pid, "cmdline")
	name, _, _ := strings.Cut(string(text), "\x00")
	return name
}

// maxText is the most that execve(2) takes of arguments and environment, in bytes. A process can say
// that more is its own (PR_SET_MM of prctl(2)).
const maxText = 6 << 20

// readText reads the arguments or the environment of a process.
func readText(pid int, which string) ([]byte, error) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/" + which)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxText))
}

// children are the children of a process: of all its threads, as each has a list of those
// that it has made (proc_pid_task_tid_children(5)).
func children(pid int) (all []int, err error) {
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil, err
	}
	for _, path := range lists {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // a thread that has ended meanwhile: its list is another's now
		}
		for word := range strings.FieldsSeq(string(text)) {
			child, err := strconv.Atoi(word)
			if err != nil {
				return nil, err
			}
			all = append(all, child)
		}
	}
	return all, nil
}

// maxTree bounds the processes of a job that are looked at.
const maxTree = 1 << 16

// tree is a process and all that descends from it, as far as they can be found.
func tree(pid int) []int {
	all := []int{pid}
	for i := 0; i < len(all) && len(all) < maxTree; i++ {
		some, err := children(all[i])
		if err == nil {
			all = append(all, some...)
		}
	}
	return all
}

// startOf reads when a process began, in clock ticks since boot.
func startOf(pid int) (uint64, error) {
	text, err := statOf(pid, 22)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(text, 10, 64)
}

// parentOf reads the number of a process's parent.
func parentOf(pid int) (int, error) {
	text, err := statOf(pid, 4)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(text)
}

// statOf reads a field, from 3 on as proc_pid_stat(5) counts them.
func statOf(pid, field int) (string, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", err
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < field-2 {
		return "", errors.New("not the text of proc_pid_stat(5)")
	}
	return fields[field-3], nil
}
