package check

import (
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/lockerd/lockerd/jepsen/model"
)

// checkTime is how long porcupine may look for an order for one part.
const checkTime = 30 * time.Second

// prefixTime is how long it may look for one for a part of that.
const prefixTime = 100 * time.Millisecond

// part is a history that porcupine can judge by itself: that of one lock, or that of
// locks for which requests are made together.
type part struct {
	name  string
	model porcupine.Model
	ops   []porcupine.Operation
}

func (p part) check() porcupine.CheckResult {
	return porcupine.CheckOperationsTimeout(p.model, p.ops, checkTime)
}

// parts divides a history. Locks that an operation names together stay together, if they
// are not too many, and if it is known which of them was granted to whom: otherwise each
// is judged by itself, and such an operation is one on each of them.
func parts(ops []porcupine.Operation) (all []part) {
	for _, group := range groups(ops) {
		locks := locksOf(group)
		if len(locks) > 1 && together(group, locks) {
			all = append(all, part{strings.Join(locks, " "), model.JointLocks, joint(group, locks)})
			continue
		}
		for _, l := range locks {
			all = append(all, single(group, l))
		}
	}
	slices.SortFunc(all, func(a, b part) int { return strings.Compare(a.name, b.name) })
	return all
}

// groups puts operations together that name a lock in common, or do so by others.
func groups(ops []porcupine.Operation) map[string][]porcupine.Operation {
	parent := map[string]string{}
	var find func(l string) string
	find = func(l string) string {
		if p, ok := parent[l]; ok && p != l {
			root := find(p)
			parent[l] = root
			return root
		}
		parent[l] = l
		return l
	}
	for _, op := range ops {
		locks := named(op)
		for _, l := range locks {
			parent[find(l)] = find(locks[0])
		}
	}
	m := map[string][]porcupine.Operation{}
	for _, op := range ops {
		root := find(op.Input.(model.Input).Locks[0])
		m[root] = append(m[root], op)
	}
	return m
}

// named are the locks that an operation asks for or gets.
func named(op porcupine.Operation) []string {
	return slices.Concat(op.Input.(model.Input).Locks, op.Output.(model.Output).Locks)
}

func locksOf(ops []porcupine.Operation) (locks []string) {
	for _, op := range ops {
		locks = append(locks, named(op)...)
	}
	slices.Sort(locks)
	return slices.Compact(locks)
}

// together says whether the joint model fits.
func together(ops []porcupine.Operation, locks []string) bool {
	return len(locks) <= model.MostJoint && !slices.ContainsFunc(ops, func(op porcupine.Operation) bool {
		in, out := op.Input.(model.Input), op.Output.(model.Output)
		return in.Kind == model.Acquire && (in.Mode != "" || out.Status == model.Unknown)
	})
}

// joint makes the operations on several locks into those of one state.
func joint(group []porcupine.Operation, locks []string) []porcupine.Operation {
	at := func(names []string) (list []int) {
		for _, l := range names {
			i, _ := slices.BinarySearch(locks, l)
			list = append(list, i)
		}
		return list
	}
	// A lock may be kept for somebody who waits for all of several.
	reserved := slices.ContainsFunc(group, func(op porcupine.Operation) bool {
		in := op.Input.(model.Input)
		return in.All && len(in.Locks) > 1
	})
	ops := slices.Clone(group)
	for i, op := range ops {
		in, out := op.Input.(model.Input), op.Output.(model.Output)
		in.At, in.Queue, in.First = at(in.Locks), in.Queue || reserved && !in.All, in.First && !reserved
		out.At = at(out.Locks)
		ops[i].Input, ops[i].Output = in, out
	}
	return ordered(ops)
}

// single is what the operations of a group are for one lock.
func single(group []porcupine.Operation, lock string) part {
	p := part{name: lock, model: model.Lock}
	modes := map[string]bool{}
	for _, op := range group {
		in, out := op.Input.(model.Input), op.Output.(model.Output)
		touched := in.Locks
		if in.Kind == model.Acquire && out.Status == model.OK {
			touched = out.Locks
		}
		if !slices.Contains(touched, lock) || in.All && out.Status == model.Busy {
			continue // that one of several is busy says nothing of any one
		}
		if in.Kind == model.Acquire {
			modes[in.Mode] = true
		}
		in.Lock, in.Locks, out.Locks = lock, nil, nil
		op.Input, op.Output = in, out
		p.ops = append(p.ops, op)
	}
	if modes[model.Shared] || modes[model.Slots] {
		p.model = model.PermitLock
		for i, op := range p.ops {
			in := op.Input.(model.Input)
			in.Queue = len(modes) > 1
			p.ops[i].Input = in
		}
		p.ops = ordered(p.ops)
	}
	return p
}

// ordered tells each grant of the one before it.
func ordered(ops []porcupine.Operation) []porcupine.Operation {
	var tokens []uint64
	granted := func(op porcupine.Operation) (uint64, bool) {
		in, out := op.Input.(model.Input), op.Output.(model.Output)
		return out.Token, in.Kind == model.Acquire && out.Status == model.OK
	}
	for _, op := range ops {
		if t, ok := granted(op); ok {
			tokens = append(tokens, t)
		}
	}
	slices.Sort(tokens)
	tokens = slices.Compact(tokens)
	for i, op := range ops {
		if t, ok := granted(op); ok {
			if n, _ := slices.BinarySearch(tokens, t); n > 0 {
				in := op.Input.(model.Input)
				in.Prev = tokens[n-1]
				ops[i].Input = in
			}
		}
	}
	return ops
}

type prefix struct {
	count int
	until time.Duration
	last  string
	first int
}

// shortest finds the shortest prefix in time of an illegal history that is illegal
// itself. A prefix is what had been called by some moment; what had not returned by
// then has an unknown end, so a legal history's prefixes are legal.
func (p part) shortest() prefix {
	ops := p.ops
	var moments []int64 // at which something was learnt
	for _, op := range ops {
		if op.Return < model.Forever {
			moments = append(moments, op.Return)
		}
	}
	slices.Sort(moments)
	// One for which the time is too short is taken for legal: then a longer one is told of.
	i := sort.Search(len(moments)-1, func(i int) bool {
		cut := until(ops, time.Duration(moments[i]))
		return porcupine.CheckOperationsTimeout(p.model, cut, prefixTime) == porcupine.Illegal
	})
	hi := moments[i]
	cut := until(ops, time.Duration(hi))
	n := prefix{count: len(cut), until: time.Duration(hi)}
	var at int64 = -1
	for _, op := range cut {
		if op.Return <= hi && op.Return > at {
			at = op.Return
			n.last = p.model.DescribeOperation(op.Input, op.Output)
			n.first = op.Input.(model.Input).Index
		}
	}
	return n
}

// until is the history as it was known at a moment.
func until(ops []porcupine.Operation, t time.Duration) []porcupine.Operation {
	var cut []porcupine.Operation
	for _, op := range ops {
		in := op.Input.(model.Input)
		switch {
		case op.Return <= int64(t):
			cut = append(cut, op)
		case op.Call <= int64(t) && in.Kind != model.Read:
			out := op.Output.(model.Output)
			if out.Status == model.OK || out.Status == model.Unknown {
				op.Return = model.Forever // it may have happened by then, as it says
				op.Output = model.Output{Status: model.Unknown}
				cut = append(cut, op)
			}
		}
	}
	return cut
}
