package fsm

import "math"

// expiry returns the first stamp at which span has passed since the one called from;
// ok is false if there is no span, or if it reaches beyond the end of time, which is
// to say never. Stamps are whole milliseconds, cut off: what happened at 10 may have
// happened at 10.9, and nothing may end early.
func expiry(from, span Millis) (at Millis, ok bool) {
	if span == 0 || span >= math.MaxUint64-from {
		return 0, false
	}
	return from + span + 1, true
}

// Deadline returns when the hold ends by itself; ok is false if it does not.
func (h *Hold) Deadline() (at Millis, ok bool) {
	limit, limited := expiry(h.Granted, h.Limit)
	lease, leased := expiry(h.Renewed, h.Lease)
	switch {
	case limited && leased:
		return min(limit, lease), true
	case limited:
		return limit, true
	}
	return lease, leased
}

const noTimer = -1

// timer is one element of deadlines.
type timer struct {
	at    Millis
	claim *claim
}

func (t timer) before(u timer) bool {
	return t.at < u.at || t.at == u.at && t.claim.hold.Fence < u.claim.hold.Fence
}

// deadlines is a binary heap by (deadline, fence): element i comes before
// elements 2i+1 and 2i+2. Invariant: d[i].claim.timer == i.
type deadlines []timer

func (d deadlines) first() (Millis, *claim) {
	if len(d) == 0 {
		return 0, nil
	}
	return d[0].at, d[0].claim
}

func (d *deadlines) add(at Millis, c *claim) {
	c.timer = len(*d)
	*d = append(*d, timer{at, c})
	d.up(c.timer)
}

func (d *deadlines) remove(c *claim) {
	h := *d
	i, last := c.timer, len(h)-1
	c.timer = noTimer
	if i != last {
		h[i] = h[last]
		h[i].claim.timer = i
	}
	h[last] = timer{}
	*d = h[:last]
	if i != last {
		d.down(i)
		d.up(i)
	}
}

func (d deadlines) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if !d[i].before(d[parent]) {
			return
		}
		d.swap(i, parent)
		i = parent
	}
}

func (d deadlines) down(i int) {
	for {
		child := 2*i + 1
		if child >= len(d) {
			return
		}
		if child+1 < len(d) && d[child+1].before(d[child]) {
			child++
		}
		if !d[child].before(d[i]) {
			return
		}
		d.swap(i, child)
		i = child
	}
}

func (d deadlines) swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].claim.timer, d[j].claim.timer = i, j
}
