package fsm

import (
	"math/rand"
	"slices"
	"testing"
)

// TestHeaps compares the two heaps with sorted slices, at sizes where every way
// through them is taken.
func TestHeaps(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	var d deadlines
	var all []*claim
	at := map[*claim]Millis{}
	for i := range 3000 {
		if len(all) > 0 && r.Intn(3) == 0 {
			j := r.Intn(len(all))
			d.remove(all[j])
			all = slices.Delete(all, j, j+1)
		} else {
			c := &claim{hold: &Hold{Fence: Fence(i)}}
			at[c] = Millis(r.Intn(500))
			d.add(at[c], c)
			all = append(all, c)
		}
		for j := range d {
			if d[j].claim.timer != j || j > 0 && d[j].before(d[(j-1)/2]) {
				t.Fatalf("step %d: element %d is misplaced", i, j)
			}
		}
	}
	slices.SortFunc(all, func(a, b *claim) int {
		if at[a] != at[b] {
			return int(at[a]) - int(at[b])
		}
		return int(a.hold.Fence) - int(b.hold.Fence)
	})
	for _, want := range all {
		when, c := d.first()
		if c != want || when != at[want] {
			t.Fatalf("got fence %d at %d, want %d at %d", c.hold.Fence, when, want.hold.Fence, at[want])
		}
		d.remove(c)
	}
	if len(d) != 0 {
		t.Errorf("%d are left", len(d))
	}

	var q candidates
	var tickets, got []Ticket
	for range 1000 {
		n := Ticket(r.Intn(700))
		tickets = append(tickets, n)
		q.push(candidate{ticket: n})
	}
	for len(q) > 0 {
		got = append(got, q.pop().ticket)
	}
	slices.Sort(tickets)
	if !slices.Equal(got, tickets) {
		t.Error("candidates come out of order")
	}
}
