package checkpoint

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

type scope uint8

const (
	scopeTree scope = iota + 1
	scopeProcess
	scopeGroup
	scopeSession
)

func (s scope) String() string {
	return [...]string{"", "tree", "process", "group", "session"}[s]
}

// Target is what is checkpointed. CRIU takes a process with all its descendants: a target
// of which that is not the whole, or which is not the whole of that, is refused.
type Target struct {
	scope scope
	id    int
}

// Tree is a process with all its descendants.
func Tree(pid int) Target { return Target{scopeTree, pid} }

// Single is a process that has no children.
func Single(pid int) Target { return Target{scopeProcess, pid} }

// Group is a process group (setpgid(2)).
func Group(pgid int) Target { return Target{scopeGroup, pgid} }

// Session is a session (setsid(2)).
func Session(sid int) Target { return Target{scopeSession, sid} }

func (t Target) String() string { return fmt.Sprintf("%s %d", t.scope, t.id) }

// resolve finds the eldest process of a target, and all of them.
func (t Target) resolve(all table) (root int, members []process, err error) {
	if t.scope == 0 || t.id <= 1 {
		return 0, nil, fail(Args, syscall.EINVAL, "%d is no process that could be checkpointed", t.id)
	}
	in := func(p process) bool { return true }
	root = t.id
	switch t.scope {
	case scopeGroup:
		in = func(p process) bool { return p.group == t.id }
	case scopeSession:
		in = func(p process) bool { return p.session == t.id }
	}
	if t.scope == scopeGroup || t.scope == scopeSession {
		if root, err = t.eldest(all, in); err != nil {
			return 0, nil, err
		}
	}
	if p, ok := all[root]; !ok || p.state == 'Z' || p.state == 'X' {
		return 0, nil, fail(Args, syscall.ESRCH, "there is no process %d", root)
	}
	if root, err = omitted(all, root); err != nil {
		return 0, nil, err
	}
	if t.scope == scopeProcess {
		in = func(p process) bool { return p.pid == root }
	}
	if all.below(os.Getpid(), root) {
		return 0, nil, fail(Args, syscall.EINVAL, "%v is what asks for the checkpoint, or has started it", t)
	}
	for pid, p := range all {
		if !all.below(pid, root) {
			continue
		}
		if !in(p) && p.state != 'Z' {
			return 0, nil, fail(Args, syscall.EINVAL,
				"process %d descends from %d and is not of the %s: its whole tree would have to be checkpointed", pid, root, t.scope)
		}
		if tracer := statusNumber(pid, "TracerPid"); tracer != 0 {
			return 0, nil, fail(Temp, syscall.EBUSY, "process %d is traced by %d", pid, tracer)
		}
		if where := elsewhere(pid, root); where != "" && p.state != 'Z' {
			return 0, nil, fail(Env, syscall.EOPNOTSUPP, "process %d is in %s, and could not be restarted from a checkpoint", pid, where)
		}
		if p.session == 0 && p.state != 'Z' {
			return 0, nil, fail(Env, syscall.EOPNOTSUPP, "process %d is of a session that began outside of our pid namespace, which CRIU cannot save: start the job with setsid(1)", pid)
		}
		members = append(members, p)
	}
	slices.SortFunc(members, func(a, b process) int { return a.pid - b.pid })
	return root, members, nil
}

// namespaces are those in which a process has to be where we are, or where the eldest is. CRIU saves some
// that are not, with the numbers that they have there, which are others' here, and then does not
// restore them.
var namespaces = []struct {
	name   string
	eldest bool
	say    string
}{
	{"pid", false, "a pid namespace that is not ours (as of a container, or of cr_restart --no-restore-pid)"},
	{"mnt", false, "a mount namespace that is not ours (as of a container, or of a service with PrivateTmp)"},
	{"net", true, "a network namespace that is not that of the eldest process"},
}

// elsewhere says in which other namespace a process is, if it is in one and we may know.
func elsewhere(pid, eldest int) string {
	for _, ns := range namespaces {
		with := os.Getpid()
		if ns.eldest {
			with = eldest
		}
		want, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", with, ns.name))
		if err != nil {
			continue
		}
		got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns.name))
		if err != nil || got == want {
			continue
		}
		if first, err := os.Readlink("/proc/1/ns/" + ns.name); ns.name == "mnt" && err == nil && got == first {
			return "the host's mount namespace, and we are not (as a service with PrivateTmp or ProtectSystem is not: see deploy/lockerd.service.d/jobs.conf)"
		}
		return ns.say
	}
	return ""
}

// eldest finds the one that all members descend from.
func (t Target) eldest(all table, in func(process) bool) (root int, err error) {
	for pid, p := range all {
		if !in(p) || p.state == 'Z' {
			continue
		}
		if parent, ok := all[p.parent]; ok && in(parent) {
			continue
		}
		if root != 0 {
			a, b := min(root, pid), max(root, pid)
			if p.parent == all[root].parent && p.parent > 1 {
				return 0, fail(Args, syscall.EINVAL, "the %s %d has no eldest process: %d and %d are both children of %d, whose tree could be checkpointed",
					t.scope, t.id, a, b, p.parent)
			}
			return 0, fail(Args, syscall.EINVAL, "the %s %d has no eldest process: neither %d nor %d descends from the other", t.scope, t.id, a, b)
		}
		root = pid
	}
	if root == 0 {
		return 0, fail(Args, syscall.ESRCH, "there is no process in %v", t)
	}
	return root, nil
}

// frozenCgroup finds the cgroup that holds a process frozen: CRIU waits in vain for a
// process that is frozen, unless it is told of the cgroup.
func frozenCgroup(pid int) (dir string, err error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return "", err
	}
	path := ""
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "0::"); ok {
			path = strings.TrimSuffix(rest, "\n")
		}
	}
	for path != "" && path != "/" {
		for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
			dir := filepath.Join(mount, path)
			state, err := os.ReadFile(filepath.Join(dir, "cgroup.freeze"))
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return "", err
			}
			if strings.TrimSpace(string(state)) == "1" {
				return dir, nil
			}
		}
		path = filepath.Dir(path)
	}
	return "", nil
}
