package model

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/anishathalye/porcupine"
)

// Modes of an Acquire. Holds that are exclusive have none.
const (
	Shared = "shared"
	Slots  = "slots"
)

// Holder is one of those who have a lock together.
type Holder struct {
	Client string
	Token  uint64 // 0: not seen yet
	Mode   string
	Slots  int
}

// Permits is the state of a lock that several may hold at a time. It is never changed:
// a step makes a new one.
type Permits struct {
	Holders []Holder // sorted by token and client
	Last    uint64   // greatest token ever seen granted
}

// admits says whether there is room for one more beside some holders.
func admits(holders []Holder, mode string, slots int) bool {
	if len(holders) == 0 {
		return true
	}
	switch {
	case holders[0].Mode != mode:
		return false
	case mode == Shared:
		return true
	}
	return mode == Slots && len(holders) < slots
}

func (p Permits) with(h Holder) Permits {
	list := append(slices.Clone(p.Holders), h)
	slices.SortFunc(list, func(a, b Holder) int {
		return cmp.Or(cmp.Compare(a.Token, b.Token), cmp.Compare(a.Client, b.Client))
	})
	return Permits{list, max(p.Last, h.Token)}
}

func (p Permits) without(i int) Permits {
	return Permits{slices.Delete(slices.Clone(p.Holders), i, i+1), p.Last}
}

// StepPermits is the specification of a lock with shared holds and slots.
func StepPermits(s Permits, in Input, out Output) (bool, Permits) {
	mine := slices.IndexFunc(s.Holders, func(h Holder) bool {
		return h.Client == in.Client && (in.Token == 0 || h.Token == 0 || h.Token == in.Token)
	})
	switch in.Kind {
	case Acquire:
		return s.acquire(in, out)
	case Release:
		switch {
		case mine >= 0 && out.Status != NotHeld:
			return true, s.without(mine)
		case out.Status == OK:
			return in.Repeated, s
		}
		return out.Status == Unknown || mine < 0, s
	case Expire:
		i := slices.IndexFunc(s.Holders, func(h Holder) bool { return h.Token == in.Token })
		if i < 0 && in.Token > s.Last {
			i = slices.IndexFunc(s.Holders, func(h Holder) bool { return h.Token == 0 && h.Client == in.Owner })
		}
		switch {
		case out.Status == NotHeld:
			return i < 0 || s.Holders[i].Token == 0, s
		case i >= 0:
			next := s.without(i)
			next.Last = max(s.Last, in.Token)
			return true, next
		}
		return out.Status == Unknown, s
	case Break:
		known := slices.ContainsFunc(s.Holders, func(h Holder) bool { return h.Client == out.Owner })
		legal := out.Status == Unknown || known || out.Owner == "" && len(s.Holders) == 0
		return legal, Permits{Last: s.Last}
	case Read:
		known := slices.ContainsFunc(s.Holders, func(h Holder) bool { return h.Client == out.Owner })
		return out.Status == Unknown || known || out.Owner == "" && len(s.Holders) == 0, s
	}
	return false, s
}

func (p Permits) acquire(in Input, out Output) (bool, Permits) {
	fits := admits(p.Holders, in.Mode, in.Slots)
	switch out.Status {
	case OK:
		if i := slices.IndexFunc(p.Holders, func(h Holder) bool { return h.Client == in.Client }); i >= 0 {
			switch t := p.Holders[i].Token; {
			case t == out.Token:
				return true, p
			case t == 0 && out.Token > p.Last:
				return true, p.without(i).with(Holder{in.Client, out.Token, in.Mode, in.Slots})
			}
			return false, p
		}
		if !fits || out.Token <= p.Last || p.Last < in.Prev {
			return false, p
		}
		return true, p.with(Holder{in.Client, out.Token, in.Mode, in.Slots})
	case Busy:
		others := slices.DeleteFunc(slices.Clone(p.Holders), func(h Holder) bool { return h.Client == in.Client })
		// Who wants the lock in another way may wait in front.
		return len(others) > 0 && (in.Queue || !admits(others, in.Mode, in.Slots)), p
	}
	if fits {
		return true, p.with(Holder{in.Client, 0, in.Mode, in.Slots})
	}
	return true, p
}

// PermitLock checks the history of one lock that several may hold at a time.
var PermitLock = porcupine.Model{
	Init: func() any { return Permits{} },
	Step: func(st, in, out any) (bool, any) {
		ok, s := StepPermits(st.(Permits), in.(Input), out.(Output))
		return ok, s
	},
	Equal: func(a, b any) bool {
		p, q := a.(Permits), b.(Permits)
		return p.Last == q.Last && slices.Equal(p.Holders, q.Holders)
	},
	Hash: func(a any) uint64 {
		p := a.(Permits)
		h := p.Last
		for _, o := range p.Holders {
			h = hash(h^o.Token*golden, o.Client)
		}
		return h
	},
	DescribeOperation: describe,
	DescribeState: func(st any) string {
		p := st.(Permits)
		if len(p.Holders) == 0 {
			return fmt.Sprintf("free, last %d", p.Last)
		}
		var names []string
		for _, h := range p.Holders {
			names = append(names, fmt.Sprintf("%s #%d %s", h.Client, h.Token, h.Mode))
		}
		return strings.Join(names, ", ")
	},
}
