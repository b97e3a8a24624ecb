package freezer

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
)

// Survey lists the processes that an order of this process would freeze now, and
// freezes nothing. It needs no more rights than to see them.
func Survey(o Order) ([]Process, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	others, err := records(Dir())
	if err != nil {
		return nil, err
	}
	h := &host{order: &o, requester: os.Getpid(), others: others}
	s, err := newScope(&o, h.requester, h.guards())
	if err != nil {
		return nil, err
	}
	defer s.proc.close()
	var table []sighting
	err = s.list(func(pids []int32) {
		for _, pid := range pids {
			if st, err := s.proc.stat(pid); err == nil {
				table = append(table, sighting{stat: st, fds: unpinned})
			}
		}
	})
	if err != nil {
		return nil, err
	}
	inside, listed := map[int32]bool{}, map[int32]bool{}
	for i := range table {
		listed[table[i].pid] = true
	}
	for _, t := range o.Targets {
		if t.Kind != KindCgroup {
			continue
		}
		c, err := openCgroup(t.Path, s.sparedNumbers(), s.proc)
		if err != nil {
			return nil, err
		}
		c.close()
		for _, pid := range members(t.Path) {
			inside[pid] = true
			if !listed[pid] {
				if st, err := s.proc.stat(pid); err == nil {
					table = append(table, sighting{stat: st, fds: unpinned})
				}
			}
		}
	}
	var found []Process
	for i, marked := range s.chosen(table, nil) {
		p := &table[i]
		// A cgroup takes those that are stopped as well.
		if p.ended() || !inside[p.pid] && (!marked || s.sparing(&p.stat) || p.state == 'T' || p.state == 't') {
			continue
		}
		found = append(found, Process{
			PID: int(p.pid), Parent: int(p.parent), Start: p.start, State: string(p.state), Name: s.proc.name(p.pid),
		})
	}
	slices.SortFunc(found, func(a, b Process) int { return a.PID - b.PID })
	return found, nil
}

// ActionDryRun makes of another action the one that says what that would freeze, and
// freezes nothing: "fsfreeze-dry-run". An executor that does not know of it refuses it.
const ActionDryRun = "-dry-run"

// maxSurvey bounds the text of a survey, in bytes.
const maxSurvey = 800

// Survey says in few words what an order would freeze on this host now; action may have
// [ActionDryRun] behind it. The error is the one that Prepare would have, as far as
// it is known without a guard. Nothing is frozen, and no hook is run. It does not wait
// longer than ctx for a kernel that has no time to answer.
func (x *Executor) Survey(ctx context.Context, action string, spec []byte) (string, error) {
	var text string
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		text, err = x.survey(strings.TrimSuffix(action, ActionDryRun), spec)
	}()
	select {
	case <-done:
		return text, err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

func (x *Executor) survey(action string, spec []byte) (text string, err error) {
	o, err := x.read(action, spec)
	if err != nil {
		return "", err
	}
	o.Protect = append(openForWriting(), x.config.Protect...)
	if o.Except, err = x.except(&o); err != nil {
		return "", err
	}
	var names []string
	one, more := "file system", "file systems"
	if action == ActionFSFreeze {
		found, err := SurveyFS(o)
		if err != nil {
			return "", err
		}
		for i := range found {
			names = append(names, fmt.Sprintf("%s (%s)", OneLine(found[i].Mount), found[i].Type))
		}
	} else {
		found, err := Survey(o)
		if err != nil {
			return "", err
		}
		one, more = "process", "processes"
		for i := range found {
			names = append(names, fmt.Sprintf("%d (%s)", found[i].PID, OneLine(found[i].Name)))
		}
	}
	text = plural(len(names), one, more)
	for i, name := range names {
		switch {
		case i == 0:
			text += ": " + name
		case len(text)+len(name) > maxSurvey:
			return text + fmt.Sprintf(", and %d more", len(names)-i), nil
		default:
			text += ", " + name
		}
	}
	return text, nil
}
