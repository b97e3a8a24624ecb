package check

import (
	"slices"
	"strconv"

	"github.com/lockerd/lockerd/jepsen/history"
)

// set: what was written under the lock is there at the end, unless the write was
// refused, and nothing is there that nobody wrote.
func set(in Input, pairs []history.Pair) Result {
	r := Result{Verdict: Pass}
	written := map[int]bool{}
	for _, p := range pairs {
		if p.Call.F != history.Write {
			continue
		}
		v, err := strconv.Atoi(p.Call.Value)
		if err != nil {
			r.problem(p.Call.Index, "op %d: %q is no element", p.Call.Index, p.Call.Value)
			continue
		}
		written[v] = true
		there := slices.Contains(in.End.Set, v)
		r.Looked++
		switch {
		case p.Type() == history.OK && !there:
			r.problem(p.Return.Index, "element %d was written under fence %d (op %d) and is gone", v, p.Call.Fence, p.Return.Index)
		case p.Type() == history.Fail && there:
			r.problem(p.Return.Index, "element %d was refused (op %d) and is there", v, p.Return.Index)
		}
	}
	for _, v := range in.End.Set {
		if !written[v] {
			r.problem(0, "element %d was never written", v)
		}
	}
	return r
}
