package model

import (
	"fmt"
	"math"

	"github.com/anishathalye/porcupine"
)

// Kind says what an operation wants.
type Kind uint8

const (
	Acquire Kind = iota // blocking or not
	Release             // by the owner
	Expire              // of the hold with Token: by a break of it, or seen by an observer
	Break               // whoever holds the lock
	Read                // who holds the lock
)

// Status says how it ended.
type Status uint8

const (
	OK Status = iota
	Busy
	NotHeld
	Unknown // it may take effect at any later moment, or never
)

// Input is what was asked.
type Input struct {
	Kind   Kind
	Lock   string
	Client string
	Token  uint64 // Release, Expire; 0 when the client never learned it
	Owner  string // Expire: whose hold it was, where that is known
	Mode   string // Acquire: Shared, Slots, or exclusive if empty
	Slots  int    // with mode Slots

	// Locks are all that an operation names; At is where they are in a joint state. Of
	// an Acquire they are in the order of the request, and All says that it wanted all.
	Locks []string
	At    []int
	All   bool
	// First says that an Acquire of any did not wait: it got the first that was free.
	First bool
	// Queue says that others may wait in front of a free lock, or of one with room.
	Queue bool
	// Prev is the greatest token below that of an Acquire that was granted, of the same
	// state. It was granted before, which saves the search from trying other orders.
	Prev uint64

	Index int // of the operation in the history, for who wants to find it

	// Repeated allows a Release to be answered OK when the hold has ended some
	// other way: a client that asked twice cannot tell whose doing it was.
	Repeated bool
}

// Output is what was answered.
type Output struct {
	Status Status
	Owner  string // Read, Break: the owner; empty if the lock was free
	Token  uint64 // Acquire OK; Read, 0 if it does not tell
	// Locks are those that an Acquire got; At is where they are in a joint state.
	Locks []string
	At    []int
}

// State is a lock. It is comparable, so == and a cheap hash serve.
type State struct {
	Owner string // empty when free
	Token uint64 // 0 with Owner set: held through an Unknown acquire, token not seen yet
	Last  uint64 // greatest token ever seen granted
}

// Step is the whole specification of a fenced, owner-aware mutex.
func Step(s State, in Input, out Output) (bool, State) {
	free := State{Last: s.Last}
	switch in.Kind {
	case Acquire:
		switch out.Status {
		case OK:
			fresh := out.Token > s.Last
			again := s.Owner == in.Client && (s.Token == out.Token || s.Token == 0 && fresh)
			if s.Owner == "" && fresh || again {
				return true, State{in.Client, out.Token, out.Token}
			}
			return false, s
		case Busy:
			return s.Owner != "" && s.Owner != in.Client, s
		default:
			if s.Owner == "" {
				return true, State{in.Client, 0, s.Last}
			}
			return true, s
		}
	case Release:
		held := s.Owner == in.Client && (in.Token == 0 || s.Token == 0 || s.Token == in.Token)
		switch {
		case held && out.Status != NotHeld:
			return true, free
		case out.Status == OK:
			return in.Repeated, s
		}
		return out.Status == Unknown || !held, s
	case Expire:
		held := s.Owner != "" && s.Token == in.Token
		bound := s.Owner != "" && s.Token == 0 && in.Token > s.Last
		switch {
		case out.Status == NotHeld:
			return !held, s
		case held:
			return true, free
		case bound:
			return true, State{Last: in.Token}
		}
		return out.Status == Unknown, s
	case Break:
		if out.Status == Unknown {
			return true, free
		}
		return s.Owner == out.Owner, free
	case Read:
		switch {
		case out.Status == Unknown:
			return true, s
		case s.Owner != out.Owner:
			return false, s
		case s.Owner == "" || out.Token == 0 || s.Token == out.Token:
			return true, s
		case s.Token == 0 && out.Token > s.Last:
			return true, State{s.Owner, out.Token, out.Token}
		}
		return false, s
	}
	return false, s
}

// Lock checks histories of locks, each by itself.
var Lock = porcupine.Model{
	Partition: func(h []porcupine.Operation) [][]porcupine.Operation {
		at := map[string]int{}
		var out [][]porcupine.Operation
		for _, op := range h {
			k := op.Input.(Input).Lock
			i, ok := at[k]
			if !ok {
				i = len(out)
				at[k] = i
				out = append(out, nil)
			}
			out[i] = append(out[i], op)
		}
		return out
	},
	Init: func() any { return State{} },
	Step: func(st, in, out any) (bool, any) {
		ok, s := Step(st.(State), in.(Input), out.(Output))
		return ok, s
	},
	Equal: func(a, b any) bool { return a.(State) == b.(State) },
	Hash: func(a any) uint64 {
		s := a.(State)
		return hash(s.Token*golden^s.Last, s.Owner)
	},
	DescribeOperation: describe,
	DescribeState: func(st any) string {
		s := st.(State)
		if s.Owner == "" {
			return fmt.Sprintf("free, last %d", s.Last)
		}
		return fmt.Sprintf("%s #%d", s.Owner, s.Token)
	},
}

// golden is the golden ratio in 64 bits, which spreads small numbers.
const golden = 0x9e3779b97f4a7c15

// hash goes on with FNV-1a from h.
func hash(h uint64, s string) uint64 {
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}

// Forever is the return time of an operation whose outcome is unknown.
const Forever = math.MaxInt64

func describe(i, o any) string {
	in, out := i.(Input), o.(Output)
	what := [...]string{"acquire", "release", "expire", "break", "read"}[in.Kind]
	end := [...]string{"ok", "busy", "not held", "unknown"}[out.Status]
	switch {
	case in.Kind == Acquire && out.Status == OK:
		end = fmt.Sprintf("#%d", out.Token)
		if len(in.Locks) > 1 {
			end += fmt.Sprintf(" of %v", out.Locks)
		}
	case in.Kind == Read && out.Owner == "":
		end = "free"
	case in.Kind == Read:
		end = out.Owner
	case in.Token != 0:
		what += fmt.Sprintf(" #%d", in.Token)
	}
	if in.Mode != "" {
		what += " " + in.Mode
	}
	if len(in.Locks) > 1 {
		what += fmt.Sprintf(" %v", in.Locks)
	}
	return fmt.Sprintf("%s %s -> %s", in.Client, what, end)
}
