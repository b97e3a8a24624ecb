package model

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// world is a correct lock service whose clients overlap at random.
type world struct {
	rng     *rand.Rand
	unknown float64 // share of operations whose outcome is not known
	locks   map[string]*grant
	token   uint64
	now     int64
	free    []int64 // when each client can do something again
	ops     []porcupine.Operation
}

type grant struct {
	client int
	token  uint64
}

func newWorld(seed uint64, clients int, unknown float64) *world {
	return &world{
		rng: rand.New(rand.NewPCG(seed, 1)), unknown: unknown,
		locks: map[string]*grant{}, free: make([]int64, clients),
	}
}

// add puts an operation around the present moment.
func (w *world) add(c int, in Input, out Output) {
	op := porcupine.Operation{ClientId: c, Input: in, Output: out, Call: max(w.free[c], w.now-w.rng.Int64N(40)), Return: w.now + 1 + w.rng.Int64N(40)}
	w.free[c] = op.Return + 1
	if in.Kind != Read && w.rng.Float64() < w.unknown {
		op.Output, op.Return = Output{Status: Unknown}, Forever
	}
	w.ops = append(w.ops, op)
}

func (w *world) step(locks int) {
	w.now += 1 + w.rng.Int64N(8)
	c := w.rng.IntN(len(w.free))
	lock := fmt.Sprint("l", w.rng.IntN(locks))
	g := w.locks[lock]
	kind := w.rng.IntN(10)
	if g != nil && kind >= 5 && kind < 8 {
		c = g.client // it is the owner who releases
	}
	if w.free[c] > w.now {
		return
	}
	name := fmt.Sprint("c", c)
	switch {
	case kind < 5 || g == nil:
		in := Input{Kind: Acquire, Lock: lock, Client: name}
		switch {
		case g == nil:
			w.token++
			w.locks[lock] = &grant{c, w.token}
			w.add(c, in, Output{Token: w.token})
		case g.client == c:
			w.add(c, in, Output{Token: g.token})
		default:
			w.add(c, in, Output{Status: Busy})
		}
	case kind < 8:
		delete(w.locks, lock)
		w.add(c, Input{Kind: Release, Lock: lock, Client: name, Token: g.token}, Output{})
	case kind < 9:
		w.add(c, Input{Kind: Read, Lock: lock}, Output{Owner: fmt.Sprint("c", g.client), Token: g.token})
	default:
		delete(w.locks, lock)
		w.ops = append(w.ops, porcupine.Operation{
			ClientId: len(w.free), Input: Input{Kind: Expire, Lock: lock, Token: g.token}, Output: Output{}, Call: w.now, Return: w.now,
		})
	}
}

func (w *world) run(n, locks int) []porcupine.Operation {
	for len(w.ops) < n {
		w.step(locks)
	}
	return w.ops
}

func TestCorrectHistories(t *testing.T) {
	for _, c := range []struct {
		n, clients, locks int
		unknown           float64
	}{{1000, 5, 1, 0}, {1000, 10, 5, 0.02}, {10_000, 20, 10, 0.05}, {3000, 10, 1, 0.05}} {
		h := newWorld(1, c.clients, c.unknown).run(c.n, c.locks)
		if r := porcupine.CheckOperationsTimeout(Lock, h, 20*time.Second); r != porcupine.Ok {
			t.Errorf("%+v: %s", c, r)
		}
	}
}

// A service that does one thing wrong, once, is found out.
func TestWrongHistories(t *testing.T) {
	for name, spoil := range map[string]func(in Input, out *Output) bool{
		"granted while held": func(in Input, out *Output) bool {
			if in.Kind != Acquire || out.Status != Busy {
				return false
			}
			*out = Output{Token: 1 << 40}
			return true
		},
		"token given out again": func(in Input, out *Output) bool {
			if in.Kind != Acquire || out.Status != OK || out.Token < 20 {
				return false
			}
			out.Token -= 15
			return true
		},
		"read of another owner": func(in Input, out *Output) bool {
			if in.Kind != Read {
				return false
			}
			out.Owner = "nobody"
			return true
		},
		"release denied to the owner": func(in Input, out *Output) bool {
			if in.Kind != Release {
				return false
			}
			out.Status = NotHeld
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			caught, tried := 0, 0
			for seed := range uint64(20) {
				h := newWorld(seed, 8, 0).run(1000, 4)
				for i := len(h) / 2; i < len(h); i++ {
					out := h[i].Output.(Output)
					if spoil(h[i].Input.(Input), &out) {
						h[i].Output = out
						tried++
						break
					}
				}
				if porcupine.CheckOperationsTimeout(Lock, h, 10*time.Second) == porcupine.Illegal {
					caught++
				}
			}
			if tried < 15 || caught < tried {
				t.Errorf("caught %d of %d", caught, tried)
			}
		})
	}
}

func TestStep(t *testing.T) {
	free, held := State{Last: 5}, State{"a", 5, 5}
	unseen := State{"a", 0, 4}
	for _, c := range []struct {
		name string
		s    State
		in   Input
		out  Output
		ok   bool
		next State
	}{
		{"busy though free", free, Input{Kind: Acquire, Client: "a"}, Output{Status: Busy}, false, free},
		{"busy for its owner", held, Input{Kind: Acquire, Client: "a"}, Output{Status: Busy}, false, held},
		{"an old token", free, Input{Kind: Acquire, Client: "a"}, Output{Token: 5}, false, free},
		{"an unknown acquire", free, Input{Kind: Acquire, Client: "a"}, Output{Status: Unknown}, true, State{"a", 0, 5}},
		{"read of an unseen token", unseen, Input{Kind: Read}, Output{Owner: "a", Token: 5}, true, held},
		{"released by a stranger", held, Input{Kind: Release, Client: "b", Token: 5}, Output{}, false, held},
		{"released twice", free, Input{Kind: Release, Client: "a", Token: 5}, Output{}, false, free},
		{"released twice, in one operation", free, Input{Kind: Release, Client: "a", Token: 5, Repeated: true}, Output{}, true, free},
		{"expired", held, Input{Kind: Expire, Token: 5}, Output{}, true, free},
		{"expired unseen", unseen, Input{Kind: Expire, Token: 5}, Output{}, true, free},
		{"expired twice", free, Input{Kind: Expire, Token: 5}, Output{}, false, free},
		{"broken", held, Input{Kind: Break}, Output{Owner: "a"}, true, free},
		{"broken, but whose", held, Input{Kind: Break}, Output{Owner: ""}, false, free},
		{"free, to a reader", held, Input{Kind: Read}, Output{}, false, held},
	} {
		ok, next := Step(c.s, c.in, c.out)
		if ok != c.ok || ok && next != c.next {
			t.Errorf("%s: %v, %+v; want %v, %+v", c.name, ok, next, c.ok, c.next)
		}
	}
}

func TestRegister(t *testing.T) {
	s := Cell{Value: 1, MaxToken: 5}
	for _, c := range []struct {
		name string
		in   Write
		out  WriteResult
		ok   bool
	}{
		{"a later token", Write{Value: 2, Token: 6}, WriteResult{Accepted: true}, true},
		{"the same token", Write{Value: 2, Token: 5}, WriteResult{Accepted: true}, true},
		{"an old token, accepted", Write{Value: 2, Token: 4}, WriteResult{Accepted: true}, false},
		{"an old token, refused", Write{Value: 2, Token: 4}, WriteResult{}, true},
		{"a good token, refused", Write{Value: 2, Token: 6}, WriteResult{}, false},
		{"a stale read", Write{Read: true}, WriteResult{Value: 0}, false},
	} {
		if ok, _ := StepRegister(s, c.in, c.out); ok != c.ok {
			t.Errorf("%s: %v", c.name, ok)
		}
	}
}
