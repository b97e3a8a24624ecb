package cluster

import "slices"

// listing is a table as programs and people are shown it.
type listing struct {
	Holds   []holdInfo
	Waiters []waiterInfo
}

// list describes the holds and the waits of a table; with lock only those that
// concern it.
func (t Table) list(lock string) listing {
	var l listing
	seats := seatsOf(t)
	for i, h := range t.Holds {
		if lock == "" || slices.Contains(h.Locks, lock) {
			l.Holds = append(l.Holds, holdInfoOf(h, t.Now, seats.waiters[i]))
		}
	}
	for i, w := range t.Waits {
		if lock == "" || slices.Contains(w.Request.Locks, lock) {
			l.Waiters = append(l.Waiters, waiterInfoOf(t, i, seats.places[i]))
		}
	}
	return l
}
