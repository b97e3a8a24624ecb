package model

import (
	"fmt"
	"slices"
	"strings"

	"github.com/anishathalye/porcupine"
)

// MostJoint is how many locks a joint state has at most.
const MostJoint = 8

// Seat is one lock of a joint state.
type Seat struct {
	Owner string // empty when free
	Token uint64 // 0 with Owner set: not seen yet
}

// Joint is the state of several locks, of which requests name more than one: for any of
// them, or for all. It is comparable.
type Joint struct {
	Seats [MostJoint]Seat
	Last  uint64 // greatest token ever seen granted, of all of them
}

// StepJoint is the specification of such locks. Each operation is one step, whatever it
// names: a request for any of several takes one, and is told that it is busy only if all
// are held at one moment; one for all takes all at one moment, and is told that it is busy
// only if one is held.
func StepJoint(s Joint, in Input, out Output) (bool, Joint) {
	switch in.Kind {
	case Acquire:
		return s.acquire(in, out)
	case Release:
		held := len(in.At) > 0
		for _, i := range in.At {
			t := s.Seats[i].Token
			held = held && s.Seats[i].Owner == in.Client && (in.Token == 0 || t == 0 || t == in.Token)
		}
		switch {
		case held && out.Status != NotHeld:
			return true, s.free(in.At)
		case out.Status == OK:
			return in.Repeated, s
		}
		return out.Status == Unknown || !held, s
	case Expire:
		held, unseen := len(in.At) > 0, len(in.At) > 0
		for _, i := range in.At {
			held = held && s.Seats[i].Owner != "" && s.Seats[i].Token == in.Token
			unseen = unseen && s.Seats[i].Owner != "" && s.Seats[i].Token == 0 && in.Token > s.Last
		}
		switch {
		case out.Status == NotHeld:
			return !held, s
		case held:
			return true, s.free(in.At)
		case unseen:
			next := s.free(in.At)
			next.Last = in.Token
			return true, next
		}
		return out.Status == Unknown, s
	case Break:
		next := s
		was := s.Seats[in.At[0]]
		for i, o := range s.Seats {
			if was.Owner != "" && o == was {
				next.Seats[i] = Seat{} // a hold ends as a whole
			}
		}
		return out.Status == Unknown || was.Owner == out.Owner, next
	case Read:
		return out.Status == Unknown || s.Seats[in.At[0]].Owner == out.Owner, s
	}
	return false, s
}

func (s Joint) acquire(in Input, out Output) (bool, Joint) {
	if out.Status == Busy {
		busy := func(i int) bool { o := s.Seats[i].Owner; return o != "" && o != in.Client }
		if in.All {
			return in.Queue || slices.ContainsFunc(in.At, busy), s
		}
		return in.Queue || !slices.ContainsFunc(in.At, func(i int) bool { return !busy(i) }), s
	}
	grant := len(out.At) > 0 && out.Token > s.Last && s.Last >= in.Prev && s.chosen(in, out)
	again := len(out.At) > 0
	next := s
	for _, i := range out.At {
		grant = grant && s.Seats[i].Owner == ""
		again = again && s.Seats[i] == Seat{in.Client, out.Token}
		next.Seats[i] = Seat{in.Client, out.Token}
	}
	next.Last = max(s.Last, out.Token)
	if grant || again {
		return true, next
	}
	return out.Status == Unknown, s
}

// chosen says whether what was granted is what was asked for: all, or one, and that the
// first that was free if there was no waiting.
func (s Joint) chosen(in Input, out Output) bool {
	if in.All {
		return len(out.At) == len(in.At)
	}
	if len(out.At) != 1 {
		return false
	}
	for _, i := range in.At {
		switch {
		case i == out.At[0]:
			return true
		case in.First && s.Seats[i].Owner == "":
			return false
		}
	}
	return false
}

func (s Joint) free(at []int) Joint {
	for _, i := range at {
		s.Seats[i] = Seat{}
	}
	return s
}

// JointLocks checks the history of locks that are asked for together.
var JointLocks = porcupine.Model{
	Init: func() any { return Joint{} },
	Step: func(st, in, out any) (bool, any) {
		ok, s := StepJoint(st.(Joint), in.(Input), out.(Output))
		return ok, s
	},
	Equal: func(a, b any) bool { return a.(Joint) == b.(Joint) },
	Hash: func(a any) uint64 {
		s := a.(Joint)
		h := s.Last
		for _, o := range s.Seats {
			h = hash(h*golden^o.Token, o.Owner)
		}
		return h
	},
	DescribeOperation: describe,
	DescribeState: func(st any) string {
		var all []string
		for i, o := range st.(Joint).Seats {
			if o.Owner != "" {
				all = append(all, fmt.Sprintf("%d: %s #%d", i, o.Owner, o.Token))
			}
		}
		return strings.Join(all, ", ")
	},
}
