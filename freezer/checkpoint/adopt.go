package checkpoint

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"
	"google.golang.org/protobuf/proto"
)

// outside is a number that no process of a checkpoint has. CRIU takes the eldest
// process's session and group, if their leader is not in the checkpoint, for those
// of a shell, and puts its own in their place.
const outside = 1

// adoption says whose sessions and groups the processes get: their own, or ours.
type adoption struct {
	root                   Process
	keepGroup, keepSession bool
	session, group         int          // of the eldest process, if their leaders are not in the checkpoint
	kept                   map[int]bool // sessions that stay whatever was asked for
}

// editTree makes the processes join our session and group, as far as their own are not
// to be kept. The leader of a session that has a terminal in the checkpoint cannot
// join another; that session stays.
func editTree(dir string, m *Manifest, keepGroup, keepSession bool) error {
	root := m.Processes[slices.IndexFunc(m.Processes, func(p Process) bool { return p.PID == m.Root })]
	a := adoption{root: root, keepGroup: keepGroup, keepSession: keepSession, kept: map[int]bool{}}
	if m.within(root.Session) == nil {
		a.session = root.Session
	}
	if m.within(root.Group) == nil {
		a.group = root.Group
	}
	terminals := filepath.Join(dir, "tty-info.img")
	into := func() proto.Message { return &tty.TtyInfoEntry{} }
	err := readImage(terminals, into, func(msg proto.Message) error {
		sid := int(msg.(*tty.TtyInfoEntry).GetSid())
		if sid != root.Session && m.within(sid) != nil {
			a.kept[sid] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = editImage(filepath.Join(dir, "pstree.img"), func() proto.Message { return &pstree.PstreeEntry{} },
		func(msg proto.Message) (bool, error) {
			e := msg.(*pstree.PstreeEntry)
			sid, pgid := a.of(int(e.GetSid()), int(e.GetPgid()))
			changed := sid != int(e.GetSid()) || pgid != int(e.GetPgid())
			e.Sid, e.Pgid = proto.Uint32(uint32(sid)), proto.Uint32(uint32(pgid))
			return changed, nil
		})
	if err != nil {
		return err
	}
	return editImage(terminals, into, func(msg proto.Message) (bool, error) {
		e := msg.(*tty.TtyInfoEntry)
		if e.GetSid() == 0 {
			return false, nil
		}
		sid, pgid := a.of(int(e.GetSid()), int(e.GetPgrp()))
		changed := sid != int(e.GetSid()) || pgid != int(e.GetPgrp())
		e.Sid, e.Pgrp = proto.Uint32(uint32(sid)), proto.Uint32(uint32(pgid))
		return changed, nil
	})
}

// of is the session and group of a process that had these.
func (a *adoption) of(sid, pgid int) (session, group int) {
	if a.kept[sid] {
		return sid, pgid
	}
	session, group = sid, pgid
	// Where the leader was outside it is the one who runs CRIU that has the old number.
	if !a.keepSession || sid == a.session {
		session = outside
	}
	// The group of a session of its own cannot be ours.
	if !a.keepGroup && (!a.keepSession || sid == a.session) || pgid == a.group {
		group = outside
	}
	return session, group
}

// within is a process of the checkpoint, by number.
func (m *Manifest) within(pid int) *Process {
	if i := slices.IndexFunc(m.Processes, func(p Process) bool { return p.PID == pid }); i >= 0 {
		return &m.Processes[i]
	}
	return nil
}

// leader is a process that is not in the checkpoint, and whose number is that of a
// session or group there. It stands between us and the eldest process.
type leader struct {
	PID     int
	Session bool // of a session, or else of a group only
}

// leaders are those that a restart needs.
func (m *Manifest) leaders(keepGroup, keepSession bool) (all []leader, err error) {
	root := m.within(m.Root)
	if keepSession && m.within(root.Session) == nil {
		if root.Session <= 1 {
			return nil, fail(Perm, syscall.EINVAL, "the session of process %d was that of another pid namespace, and cannot be restored", root.PID)
		}
		all = append(all, leader{root.Session, true})
	}
	if keepGroup && m.within(root.Group) == nil && (len(all) == 0 || root.Group != root.Session) {
		if root.Group <= 1 {
			return nil, fail(Perm, syscall.EINVAL, "the group of process %d was that of another pid namespace, and cannot be restored", root.PID)
		}
		all = append(all, leader{root.Group, false})
	}
	return all, nil
}

// reapTime is how long we wait for somebody to wait for processes that have ended: one
// that is killed and restarted at once has children that init may not have got to yet.
const reapTime = 10 * time.Second

// waitFree waits until the numbers that a restart needs are free, or held by somebody
// who lives.
func (m *Manifest) waitFree(ctx context.Context, leaders []leader) error {
	for until := time.Now().Add(reapTime); ; {
		id, err := m.inUse(leaders)
		if err == nil || time.Now().After(until) || !onlyEnded(id) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// inUse looks for a number that a restart needs and that somebody has.
func (m *Manifest) inUse(leaders []leader) (id int, err error) {
	busy := func(what string) (int, error) { return id, inUse(what, id) }
	for _, p := range m.Processes {
		for _, id = range append([]int{p.PID}, p.Threads...) {
			if exists(id) {
				return busy("process")
			}
			if exists(-id) {
				return busy("process group")
			}
		}
	}
	for _, l := range leaders {
		if id = l.PID; exists(id) || exists(-id) {
			if l.Session {
				return busy("session")
			}
			return busy("process group")
		}
	}
	return 0, nil
}

// ErrInUse says that somebody has a number that a restart needs.
var ErrInUse = errors.New("is in use")

// inUse says by whom.
func inUse(what string, id int) *Error {
	e := fail(Temp, syscall.EBUSY, "the %s number %d %w", what, id, ErrInUse)
	if name := nameOf(id); name != "" { // of a thread, too
		return fail(Temp, syscall.EBUSY, "%w by %q", e, name)
	}
	all, _ := readTable()
	for pid, p := range all {
		if p.group == id || p.session == id {
			return fail(Temp, syscall.EBUSY, "%w by %q, process %d", e, nameOf(pid), pid)
		}
	}
	return e
}

func nameOf(pid int) string {
	text, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	return strings.TrimSuffix(string(text), "\n")
}

func exists(id int) bool { return syscall.Kill(id, 0) != syscall.ESRCH }

// onlyEnded says whether all who have a number, as theirs, their group's or their
// session's, have ended.
func onlyEnded(id int) bool {
	all, err := readTable()
	if err != nil {
		return false
	}
	found := false
	for _, p := range all {
		if p.pid != id && p.group != id && p.session != id {
			continue
		}
		if p.state != 'Z' && p.state != 'X' {
			return false
		}
		found = true
	}
	return found || !exists(id) && !exists(-id) // or it is that of a thread
}
