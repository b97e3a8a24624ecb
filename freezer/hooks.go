package freezer

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrHook is returned when a hook has failed, or cannot be trusted.
var ErrHook = errors.New("hook")

// hooks are the programs of a directory that bring to rest what knows how to.
type hooks struct {
	dir   string
	state string // the directory for journals, where it is written down who has begun
	limit time.Duration
	log   func(string, ...any)
	turn  chan struct{} // has room for the one that runs hooks
	begun atomic.Int32  // hooks that are still to be told of the thaw
}

const (
	hooksEnd = ".hooks"
	maxHooks = 100 // of a directory
	// maxHookOutput bounds what is kept of a hook's output, in bytes.
	maxHookOutput = 4 << 10
	// hookDelay is how long is waited for the output of a hook that has ended.
	hookDelay = time.Second
	// hookPause is the time between two looks at what is being ended.
	hookPause = 10 * time.Millisecond
)

func newHooks(c ExecutorConfig, state string) (*hooks, error) {
	dir, err := filepath.Abs(c.HooksDir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrHook, err)
	}
	h := &hooks{dir: dir, state: state, limit: cmp.Or(c.HookTimeout, DefaultHookTimeout), log: c.Log, turn: make(chan struct{}, 1)}
	if h.limit < 0 {
		return nil, fmt.Errorf("%w: a time limit of %v", ErrHook, h.limit)
	}
	_, err = h.list()
	return h, err
}

// list reads the directory. What others than root could have put there is refused:
// whoever runs it is root.
func (h *hooks) list() (paths []string, err error) {
	if err := trusted(h.dir); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(h.dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrHook, err)
	}
	for _, e := range entries {
		path := filepath.Join(h.dir, e.Name())
		st, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrHook, err)
		}
		if !st.Mode().IsRegular() || st.Mode()&0o111 == 0 || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if err := trusted(path); err != nil {
			return nil, err
		}
		paths = append(paths, path)
	}
	if len(paths) > maxHooks {
		return nil, fmt.Errorf("%w: %s has more than %d", ErrHook, h.dir, maxHooks)
	}
	return paths, nil // ReadDir has sorted them
}

// trusted refuses a path that somebody could have changed who is not root. Of the
// directories above it is enough that what is in them is safe (the sticky bit, inode(7)).
func trusted(path string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrHook, err)
	}
	for at := real; ; at = filepath.Dir(at) {
		st, err := os.Lstat(at)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrHook, err)
		}
		owner, safe := st.Sys().(*syscall.Stat_t).Uid, at != real && st.Mode()&os.ModeSticky != 0
		switch {
		case owner != 0:
			return fmt.Errorf("%w: %s is owned by user %d, and has to be root's", ErrHook, at, owner)
		case st.Mode()&0o022 != 0 && !safe:
			return fmt.Errorf("%w: %s may be written by others than root (mode %04o)", ErrHook, at, st.Mode().Perm())
		case at == "/":
			return nil
		}
	}
}

// hookRun are the hooks of one order. What they were told, and which have begun, is in
// a file beside the journals, so that somebody can tell them of the thaw if we cannot.
type hookRun struct {
	hooks *hooks
	file  *os.File // that we have the lock of
	path  string
	rec   hookRecord
	begun []string
	group int   // the process group of the hook that runs now; 0 for none
	size  int64 // of what could be read
}

// hookRecord is the first line of the file. The others are paths, quoted, of hooks that
// begin, and the word group with the process group of the one that runs; 0 when it has
// ended.
type hookRecord struct {
	Boot    string   `json:"boot"`
	Order   uint64   `json:"order"`
	Action  string   `json:"action"`
	Targets []string `json:"targets"`
}

// freeze runs the hooks before a freeze. If any has begun, thaw has to be called, also
// after an error.
func (h *hooks) freeze(ctx context.Context, order uint64, action string, targets []Target) (*hookRun, error) {
	select {
	case h.turn <- struct{}{}:
		defer func() { <-h.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	paths, err := h.list()
	if err != nil || len(paths) == 0 {
		return nil, err
	}
	r := &hookRun{hooks: h, rec: hookRecord{Boot: bootID(), Order: order, Action: action}}
	for _, t := range targets {
		r.rec.Targets = append(r.rec.Targets, t.hookName())
	}
	first, err := json.Marshal(&r.rec)
	if err != nil {
		return nil, err
	}
	// No name is given twice, so the environment of a hook says of which run it is.
	r.path = filepath.Join(h.state, fmt.Sprintf("%d-%d%s", order, time.Now().UnixNano(), hooksEnd))
	if r.file, err = createLocked(r.path, append(first, '\n')); err != nil {
		return nil, fmt.Errorf("write down which hooks have begun: %w", err)
	}
	for _, path := range paths {
		if _, err := r.file.WriteString(strconv.Quote(path) + "\n"); err != nil {
			return r, fmt.Errorf("write down which hooks have begun: %w", err)
		}
		r.begun = append(r.begun, path)
		h.begun.Add(1)
		if err := r.run(ctx, path, "freeze"); err != nil {
			return r, err
		}
	}
	return r, nil
}

// hookName is what LOCKERD_TARGETS has of a target: a path, or the kind and numbers.
func (t *Target) hookName() string {
	if t.Path != "" {
		return t.Path
	}
	return strings.TrimSpace(string(t.Kind) + " " + strings.Trim(fmt.Sprint(t.PIDs), "[]"))
}

// thaw tells all that have begun, the last first. One that fails keeps nobody.
func (r *hookRun) thaw() {
	r.hooks.turn <- struct{}{}
	defer func() { <-r.hooks.turn }()
	for _, path := range slices.Backward(r.begun) {
		if err := r.run(context.Background(), path, "thaw"); err != nil {
			r.hooks.log("a hook failed", "order", r.rec.Order, "error", err)
		}
		r.hooks.begun.Add(-1)
	}
	_ = os.Remove(r.path)
	_ = r.file.Close()
}

// run runs one hook.
func (r *hookRun) run(ctx context.Context, path, what string) error {
	ctx, cancel := context.WithTimeout(ctx, r.hooks.limit)
	defer cancel()
	var out tail
	cmd := exec.CommandContext(ctx, path, what)
	cmd.Env = append(
		os.Environ(),
		"LOCKERD_ORDER="+strconv.FormatUint(r.rec.Order, 10),
		"LOCKERD_ACTION="+r.rec.Action,
		"LOCKERD_TARGETS="+strings.Join(r.rec.Targets, "\n"),
		r.mark(),
	)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = &out, &out
	// With us ends the hook. That is its process alone, and recover has to end the others;
	// but it is also the one that nobody has written down yet.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // whose death it is that counts
	defer runtime.UnlockOSThread()
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = hookDelay
	err := cmd.Start()
	if err == nil {
		r.note(cmd.Process.Pid)
		err = cmd.Wait()
		r.note(0)
	}
	switch name := filepath.Base(path); {
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // something that it has started goes on
		return nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%w %s %s did not end within %v", ErrHook, name, what, r.hooks.limit)
	case ctx.Err() != nil:
		return fmt.Errorf("%w %s %s: %w", ErrHook, name, what, context.Cause(ctx))
	default:
		return fmt.Errorf("%w %s %s: %w%s", ErrHook, name, what, err, out.lastLine())
	}
}

// mark is in the environment of the hooks of this run, and of all that they start.
func (r *hookRun) mark() string { return "LOCKERD_HOOK_RUN=" + filepath.Base(r.path) }

// note writes down which process group runs. If it cannot, a hook that outlives us is not
// ended.
func (r *hookRun) note(group int) {
	if _, err := fmt.Fprintf(r.file, "group %d\n", group); err != nil {
		r.hooks.log("cannot write down which hook runs", "order", r.rec.Order, "error", err)
	}
}

// endLast ends what is left of the hook that was running when its executor was killed: it
// would bring to rest what has just been told to go on.
func (r *hookRun) endLast() {
	if r.group == 0 {
		return
	}
	for until := time.Now().Add(r.hooks.limit); ; time.Sleep(hookPause) {
		left, err := r.members()
		if err == nil && len(left) == 0 {
			return
		}
		if err != nil || time.Now().After(until) {
			r.hooks.log("a hook may still run whose executor was killed", "order", r.rec.Order, "processes", left, "error", err)
			return
		}
		for _, pid := range left {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// members are the processes of the group. Its number may be that of another group now,
// which does not have the mark.
func (r *hookRun) members() (pids []int, err error) {
	proc, err := openProc()
	if err != nil {
		return nil, err
	}
	defer proc.close()
	err = proc.list(func(some []int32) {
		for _, pid := range some {
			if group, err := unix.Getpgid(int(pid)); err != nil || group != r.group {
				continue
			}
			environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)) // empty once it has ended
			if err == nil && slices.Contains(strings.Split(string(environ), "\x00"), r.mark()) {
				pids = append(pids, int(pid))
			}
		}
	})
	return pids, err
}

// recover tells the hooks of the thaw that an executor has begun which was killed. What
// that had frozen its guards thaw.
func (h *hooks) recover() {
	paths, _ := filepath.Glob(filepath.Join(h.state, "*"+hooksEnd))
	for _, path := range paths {
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue // it has been removed
		}
		if !orphaned(f) {
			_ = f.Close() // its executor lives
			continue
		}
		r, err := readHookRun(f)
		r.hooks, r.file, r.path = h, f, path
		if err != nil || r.rec.Boot != bootID() {
			h.log("cannot tell hooks of a thaw", "file", path, "error", err)
			r.begun, r.group = nil, 0
		}
		_ = f.Truncate(r.size)
		_, _ = f.Seek(r.size, io.SeekStart)
		r.endLast()
		h.begun.Add(int32(len(r.begun)))
		r.thaw()
	}
}

// longest is how long it may take to tell of the thaw all that have begun, one after the
// other.
func (h *hooks) longest() time.Duration {
	return time.Duration(h.begun.Load()) * (h.limit + hookDelay)
}

// readHookRun reads what freeze has written. A last line without its end is of a hook
// that has not begun.
func readHookRun(f io.Reader) (*hookRun, error) {
	r := &hookRun{}
	in := bufio.NewReader(io.LimitReader(f, maxJournal))
	for first := true; ; first = false {
		line, err := in.ReadString('\n')
		if err != nil {
			if first {
				return r, errJournal
			}
			return r, nil
		}
		r.size += int64(len(line))
		if first {
			if err := json.Unmarshal([]byte(line), &r.rec); err != nil {
				return r, fmt.Errorf("%w: %w", errJournal, err)
			}
			continue
		}
		if word, ok := strings.CutPrefix(line, "group "); ok {
			group, err := strconv.ParseUint(strings.TrimSuffix(word, "\n"), 10, 31)
			if err != nil {
				return r, fmt.Errorf("%w: line %.80q", errJournal, line)
			}
			r.group = int(group)
			continue
		}
		path, err := strconv.Unquote(strings.TrimSuffix(line, "\n"))
		if err != nil || len(r.begun) == maxHooks {
			return r, fmt.Errorf("%w: line %.80q", errJournal, line)
		}
		r.begun = append(r.begun, path)
	}
}

// tail keeps the end of what is written to it.
type tail struct{ text []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.text = append(t.text, p...)
	if over := len(t.text) - maxHookOutput; over > 0 {
		t.text = append(t.text[:0], t.text[over:]...)
	}
	return len(p), nil
}

// lastLine is for the end of an error.
func (t *tail) lastLine() string {
	text := bytes.TrimSpace(t.text)
	text = text[bytes.LastIndexByte(text, '\n')+1:]
	if len(text) == 0 {
		return ""
	}
	return fmt.Sprintf(": %.200q", text)
}
