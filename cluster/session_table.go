package cluster

import (
	"slices"

	"github.com/lockerd/lockerd/fsm"
	"github.com/lockerd/lockerd/transport"
)

// list answers LOCK_LIST: a line for each lock of each hold.
func (s *session) list() bool {
	if s.flush() != nil {
		return false
	}
	t, err := s.node.Table(s.ctx, false)
	if err != nil {
		return s.refuse(fault(err))
	}
	for _, h := range t.Holds {
		for _, name := range h.Locks {
			s.out = transport.AppendLock(s.out, name, h.Owner)
		}
		if !s.relieve() {
			return false
		}
	}
	s.out = transport.AppendListEnd(s.out)
	return s.flush() == nil
}

// holds answers HOLDS.
func (s *session) holds() bool {
	if s.flush() != nil {
		return false
	}
	t, err := s.node.Table(s.ctx, false)
	if err != nil {
		return s.refuse(fault(err))
	}
	seats := seatsOf(t)
	for i, h := range t.Holds {
		s.out = transport.AppendHold(s.out, mustJSON(holdInfoOf(h, t.Now, seats.waiters[i])))
		if !s.relieve() {
			return false
		}
	}
	for i := range t.Waits {
		s.out = transport.AppendWaiter(s.out, mustJSON(waiterInfoOf(t, i, seats.places[i])))
		if !s.relieve() {
			return false
		}
	}
	s.out = transport.AppendHoldsEnd(s.out)
	return s.flush() == nil
}

// holdInfo describes a hold to programs. Times are in milliseconds.
type holdInfo struct {
	Lock       string     `json:"lock"` // the first of Locks
	Locks      []string   `json:"locks"`
	Owner      string     `json:"owner"`
	Fence      fsm.Fence  `json:"fence"`
	Mode       string     `json:"mode"`
	Slots      uint32     `json:"slots,omitempty"`
	Host       string     `json:"host,omitempty"`
	PID        int32      `json:"pid,omitempty"`
	GrantedAgo fsm.Millis `json:"granted_ms_ago"`
	Left       *int64     `json:"left_ms,omitempty"` // until the hold limit; absent without one
	Lease      fsm.Millis `json:"lease_ms,omitempty"`
	Autounlock bool       `json:"autounlock"`
	Waiters    int        `json:"waiters"` // requests queued for any of Locks

	Suspended *suspendedInfo `json:"suspended,omitempty"` // its job is on disk, and nobody has it
}

// suspendedInfo describes the suspension of a hold to programs.
type suspendedInfo struct {
	By      string     `json:"by"`
	Ago     fsm.Millis `json:"ms_ago"`
	Context string     `json:"context,omitempty"` // where the job is
	Ending  bool       `json:"ending,omitempty"`  // it is not known to have ended yet
}

// waiterInfo describes a wait to programs. Times are in milliseconds.
type waiterInfo struct {
	Locks  []string   `json:"locks"`
	Owner  string     `json:"owner"`
	Ticket fsm.Ticket `json:"ticket"`
	Place  int        `json:"place"`          // 1 is next
	Away   bool       `json:"away,omitempty"` // passed over: its node is out of touch
	Mode   string     `json:"mode"`
	Choice string     `json:"choice"`
	Host   string     `json:"host,omitempty"`
	PID    int32      `json:"pid,omitempty"`
	Waited fsm.Millis `json:"waited_ms"`
}

func holdInfoOf(h *fsm.Hold, now fsm.Millis, waiters int) holdInfo {
	i := holdInfo{
		Lock: h.Locks[0], Locks: h.Locks, Owner: h.Owner, Fence: h.Fence, Mode: modeWord(h.Mode), Slots: h.Slots,
		Host: h.Process.Host, PID: h.Process.PID, GrantedAgo: now - h.Granted, Lease: h.Lease,
		Autounlock: h.Autounlock, Waiters: waiters,
	}
	if h.Limit > 0 {
		left := int64(h.Limit) - int64(now-h.Granted)
		i.Left = &left
	}
	if s := h.Suspended; s != nil {
		i.Suspended = &suspendedInfo{By: s.By, Ago: now - s.At, Context: s.Context, Ending: !s.Ended}
	}
	return i
}

func waiterInfoOf(t Table, i, place int) waiterInfo {
	w, choice := t.Waits[i], "any"
	if w.Request.Choice == fsm.All {
		choice = "all"
	}
	return waiterInfo{
		Locks: w.Request.Locks, Owner: w.Request.Owner, Ticket: w.Ticket, Place: place, Away: t.Away[w.Ticket],
		Mode: modeWord(w.Request.Mode), Choice: choice,
		Host: w.Request.Process.Host, PID: w.Request.Process.PID, Waited: t.Now - w.Since,
	}
}

func modeWord(m fsm.Mode) string {
	switch m {
	case fsm.Shared:
		return "shared"
	case fsm.Slots:
		return "slots"
	}
	return "exclusive"
}

// seats says who stands where: for each hold of a table how many wait for it, and
// for each wait its place.
type seats struct {
	waiters []int
	places  []int
}

// seatsOf takes one pass over the table, whatever the lengths of its queues.
func seatsOf(t Table) seats {
	st := seats{waiters: make([]int, len(t.Holds)), places: make([]int, len(t.Waits))}
	queued := make(map[string]int)
	several := make(map[string][]int) // the holds of several locks, by each of their locks
	for i, h := range t.Holds {
		if len(h.Locks) > 1 {
			for _, name := range h.Locks {
				several[name] = append(several[name], i)
			}
		}
	}
	counted := make([]int, len(t.Holds)) // 1 + the last wait counted for a hold of several locks
	for i, w := range t.Waits {
		places := make([]int, 0, len(w.Request.Locks))
		for _, name := range w.Request.Locks {
			queued[name]++
			places = append(places, queued[name])
			for _, h := range several[name] {
				if counted[h] != i+1 {
					counted[h] = i + 1
					st.waiters[h]++
				}
			}
		}
		if w.Request.Choice == fsm.All {
			st.places[i] = slices.Max(places)
		} else {
			st.places[i] = slices.Min(places)
		}
	}
	for i, h := range t.Holds {
		if len(h.Locks) == 1 {
			st.waiters[i] = queued[h.Locks[0]]
		}
	}
	return st
}
