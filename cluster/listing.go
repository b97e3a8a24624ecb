package cluster

import (
	"slices"

	"github.com/lockerd/lockerd/fsm"
)

// HoldInfo is a hold as programs and people are shown it. Times are in
// milliseconds and count from the moment of the listing.
type HoldInfo struct {
	Lock       string   `json:"lock"` // the first of Locks
	Locks      []string `json:"locks"`
	Owner      string   `json:"owner"`
	Fence      uint64   `json:"fence"`
	Mode       string   `json:"mode"` // exclusive, shared or slots
	Slots      uint32   `json:"slots,omitempty"`
	Host       string   `json:"host,omitempty"`
	PID        int32    `json:"pid,omitempty"`
	Granted    uint64   `json:"granted_ms_ago"`
	Left       *uint64  `json:"left_ms,omitempty"` // until it ends by itself, if it does
	Lease      uint64   `json:"lease_ms,omitempty"`
	Autounlock bool     `json:"autounlock"`
	Waiters    int      `json:"waiters"` // for any of Locks
}

// WaitInfo is a queued request, likewise.
type WaitInfo struct {
	Locks  []string `json:"locks"`
	Owner  string   `json:"owner"`
	Ticket uint64   `json:"ticket"`
	Place  int      `json:"place"` // 1 is next; of several queues the best, or for all of them the worst
	Mode   string   `json:"mode"`
	Choice string   `json:"choice"` // any or all
	Host   string   `json:"host,omitempty"`
	PID    int32    `json:"pid,omitempty"`
	Waited uint64   `json:"waited_ms"`
}

// Listing is what [Table.List] gives.
type Listing struct {
	Holds []HoldInfo `json:"holds"`
	Waits []WaitInfo `json:"waiters"`
}

// List describes the holds and the waits of a table; with lock only those that
// concern it.
func (t Table) List(lock string) Listing {
	list := Listing{Holds: []HoldInfo{}, Waits: []WaitInfo{}}
	queued := make(map[string]int) // by lock
	several := make([]*fsm.Wait, 0)
	for _, w := range t.Waits {
		place := 0
		for _, name := range w.Request.Locks {
			queued[name]++
			switch n := queued[name]; {
			case place == 0, w.Request.Choice == fsm.Any && n < place, w.Request.Choice == fsm.All && n > place:
				place = n
			}
		}
		if len(w.Request.Locks) > 1 {
			several = append(several, w)
		}
		if lock == "" || slices.Contains(w.Request.Locks, lock) {
			list.Waits = append(list.Waits, t.wait(w, place))
		}
	}
	for _, h := range t.Holds {
		if lock == "" || slices.Contains(h.Locks, lock) {
			info := t.hold(h)
			info.Waiters = waiters(h.Locks, queued, several)
			list.Holds = append(list.Holds, info)
		}
	}
	return list
}

// waiters counts the requests queued for any of locks, each of them once.
func waiters(locks []string, queued map[string]int, several []*fsm.Wait) int {
	n := 0
	for _, name := range locks {
		n += queued[name]
	}
	if n == 0 || len(locks) == 1 {
		return n
	}
	for _, w := range several {
		in := 0
		for _, name := range w.Request.Locks {
			if slices.Contains(locks, name) {
				in++
			}
		}
		n -= max(in-1, 0)
	}
	return n
}

func (t Table) hold(h *fsm.Hold) HoldInfo {
	info := HoldInfo{
		Lock: h.Locks[0], Locks: h.Locks, Owner: h.Owner, Fence: uint64(h.Fence),
		Mode: h.Mode.String(), Slots: h.Slots, Host: h.Process.Host, PID: h.Process.PID,
		Granted: since(t.Now, h.Granted), Lease: uint64(h.Lease), Autounlock: h.Autounlock,
	}
	end := func(at fsm.Millis) {
		if left := since(at, t.Now); info.Left == nil || left < *info.Left {
			info.Left = &left
		}
	}
	if h.Limit != 0 {
		end(h.Granted + h.Limit)
	}
	if h.Lease != 0 {
		end(h.Renewed + h.Lease)
	}
	return info
}

func (t Table) wait(w *fsm.Wait, place int) WaitInfo {
	r := w.Request
	choice := "any"
	if r.Choice == fsm.All {
		choice = "all"
	}
	return WaitInfo{
		Locks: r.Locks, Owner: r.Owner, Ticket: uint64(w.Ticket), Place: place,
		Mode: r.Mode.String(), Choice: choice, Host: r.Process.Host, PID: r.Process.PID,
		Waited: since(t.Now, w.Since),
	}
}

// since is the time from b to a, and none if b is later.
func since(a, b fsm.Millis) uint64 {
	if a < b {
		return 0
	}
	return uint64(a - b)
}

// EventInfo is an event of the table as watchers are shown it.
type EventInfo struct {
	Kind   string   `json:"kind"` // granted, queued, released, withdrawn or superseded
	Locks  []string `json:"locks"`
	Owner  string   `json:"owner"`
	Fence  uint64   `json:"fence,omitempty"`
	Ticket uint64   `json:"ticket,omitempty"`
	Mode   string   `json:"mode,omitempty"`
	Host   string   `json:"host,omitempty"`
	PID    int32    `json:"pid,omitempty"`
	Cause  string   `json:"cause,omitempty"` // why a hold or a wait ended
	By     string   `json:"by,omitempty"`    // who broke it
	At     uint64   `json:"at_ms"`           // replicated time
}

// describe gives an event in words.
func describe(e fsm.Event) EventInfo {
	info := EventInfo{
		Kind: e.Kind.String(), Locks: e.Locks, Owner: e.Owner, Fence: uint64(e.Fence), Ticket: uint64(e.Ticket),
		Mode: e.Mode.String(), Host: e.Process.Host, PID: e.Process.PID, By: e.By, At: uint64(e.At),
	}
	if e.Cause != fsm.CauseNone {
		info.Cause = e.Cause.String()
	}
	return info
}
