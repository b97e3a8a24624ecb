package fsm

// roll lists all holds or all waits, in no order: row i is the value of claims[i].
// The values are kept apart from the claims, in pages that snapshots share: the
// first change of a page after a snapshot copies it. So a snapshot costs Apply a
// copy of the page table, and not of a pointer for each of a million holds.
type roll[T any] struct {
	pages  []*page[T]
	age    uint64 // the number of snapshots taken
	claims []*claim
	byKey  map[uint64]*claim
}

const pageRows = 256

// page is written to only while its age is that of its roll. Rows beyond the end
// of the roll are nil.
type page[T any] struct {
	age  uint64
	rows [pageRows]*T
}

func newRoll[T any]() roll[T] { return roll[T]{byKey: make(map[uint64]*claim)} }

// grow makes room for n rows, for whoever knows that they will come.
func (r *roll[T]) grow(n int) {
	r.claims = make([]*claim, 0, n)
	r.byKey = make(map[uint64]*claim, n)
}

func (r *roll[T]) at(row int) *T { return r.pages[row/pageRows].rows[row%pageRows] }

func (r *roll[T]) set(row int, v *T) {
	p := r.pages[row/pageRows]
	if p.age != r.age {
		p = &page[T]{age: r.age, rows: p.rows}
		r.pages[row/pageRows] = p
	}
	p.rows[row%pageRows] = v
}

func (r *roll[T]) add(key uint64, v *T, c *claim) {
	c.row = len(r.claims)
	if c.row == len(r.pages)*pageRows {
		r.pages = append(r.pages, &page[T]{age: r.age})
	}
	r.set(c.row, v)
	r.claims = append(r.claims, c)
	r.byKey[key] = c
}

func (r *roll[T]) remove(key uint64, c *claim) {
	last := len(r.claims) - 1
	if c.row != last {
		r.set(c.row, r.at(last))
		r.claims[c.row] = r.claims[last]
		r.claims[c.row].row = c.row
	}
	r.set(last, nil)
	r.claims[last] = nil
	r.claims = r.claims[:last]
	// One empty page is kept, or a hold that comes and goes would make one each time.
	if n := len(r.pages); last <= (n-2)*pageRows {
		r.pages[n-1] = nil
		r.pages = r.pages[:n-1]
	}
	delete(r.byKey, key)
}

// share returns the values as they are, for good.
func (r *roll[T]) share() shared[T] {
	r.age++
	return shared[T]{pages: append([]*page[T](nil), r.pages...), n: len(r.claims)}
}

// shared is what a roll was at one moment.
type shared[T any] struct {
	pages []*page[T]
	n     int
}

// values returns a new slice of all of them, in no order.
func (s shared[T]) values() []*T {
	list := make([]*T, 0, s.n)
	for _, p := range s.pages {
		list = append(list, p.rows[:min(pageRows, s.n-len(list))]...)
	}
	return list
}
