package freezer

import (
	"os"
	"slices"
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
