package check

// Growth is how many goroutines and file descriptors a node had before clients came, and
// after they had gone. It is 0 where the node did not say.
type Growth struct {
	Node       string `json:"node"`
	Goroutines [2]int `json:"goroutines"`
	Files      [2]int `json:"files"`
}

// A node may have so many more of them than before. Nobody is connected any more, but a
// new leader has more to do than a follower, and other nodes may be connected twice.
const (
	moreGoroutines = 60
	moreFiles      = 30
)

// Large says whether it has grown by too much, or did not say.
func (g Growth) Large() bool {
	return g.Goroutines[0] == 0 || g.Goroutines[1] == 0 ||
		g.Goroutines[1]-g.Goroutines[0] > moreGoroutines || g.Files[1]-g.Files[0] > moreFiles
}

// growth: nothing piles up in the nodes. (P1)
func growth(end End) Result {
	r := Result{Verdict: Pass}
	silent := false
	for _, g := range end.Growth {
		if g.Goroutines[0] == 0 || g.Goroutines[1] == 0 {
			silent = true
			continue
		}
		r.Looked++
		if g.Large() {
			r.problem(0, "%s had %d goroutines and %d files open, and has %d and %d when all clients have gone",
				g.Node, g.Goroutines[0], g.Files[0], g.Goroutines[1], g.Files[1])
		}
	}
	if silent && r.Verdict == Pass {
		r.Verdict, r.Problems = Undecided, []string{"not all nodes told what they have open"}
	}
	return r
}
