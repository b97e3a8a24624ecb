package fsm

const (
	turnSpan = Millis(3_600_000) // how long a claimant's turn is remembered
	maxTurns = 16_384            // and of how many; the oldest go first
)

// turn is what the table remembers of a claimant that numbers its requests,
// whether it has a claim or not: an Acquire may be kept for long by a node that
// has lost its leader, and it must not take a lock when nobody waits for it any more.
type turn struct {
	who  claimant
	last uint64 // the highest Acquire.Turn that has come
	over bool   // released by name: all its requests are of the past
	at   Millis
}

// turns finds them. A turn that is replaced stays in list until it is at the
// front, or the list is swept; only what live leads to counts.
type turns struct {
	list  []turn // rising at
	first int    // number of list[0], counted from the first ever
	live  map[claimant]int
}

func (t *turns) get(who claimant) (turn, bool) {
	n, ok := t.live[who]
	if !ok {
		return turn{}, false
	}
	return t.list[n-t.first], true
}

// late reports whether a request has been left behind by its own claimant.
func (t *turns) late(who claimant, n uint64) bool {
	if n == 0 {
		return false
	}
	v, ok := t.get(who)
	return ok && (v.over || n < v.last)
}

// note remembers v, and what is remembered of its claimant already.
func (t *turns) note(v turn) {
	if old, ok := t.get(v.who); ok {
		v.last, v.over = max(v.last, old.last), v.over || old.over
	}
	if len(t.list) > 2*len(t.live)+64 {
		list := t.all()
		t.first, t.list = t.first+len(t.list)-len(list), list
		for i, w := range list {
			t.live[w.who] = t.first + i
		}
	}
	t.live[v.who] = t.first + len(t.list)
	t.list = append(t.list, v)
	t.forget(v.at)
}

// forget drops the turns that are too old, or too many.
func (t *turns) forget(now Millis) {
	for len(t.list) > 0 {
		v := &t.list[0]
		if t.live[v.who] == t.first {
			if len(t.live) <= maxTurns && now-v.at < turnSpan {
				return
			}
			delete(t.live, v.who)
		}
		*v = turn{}
		t.list = t.list[1:]
		t.first++
	}
}

// all returns the turns that count, rising.
func (t *turns) all() []turn {
	list := make([]turn, 0, len(t.live))
	for i, v := range t.list {
		if t.live[v.who] == t.first+i {
			list = append(list, v)
		}
	}
	return list
}
