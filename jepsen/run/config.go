package run

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lockerd/lockerd/jepsen/gen"
	"github.com/lockerd/lockerd/jepsen/nemesis"
	"github.com/lockerd/lockerd/jepsen/workload"
)

// Config says what to run. With the same one, the schedule of faults and the
// actions of the clients are the same.
type Config struct {
	Workload string        `json:"workload"`
	Nemesis  []string      `json:"nemesis"`
	Nodes    int           `json:"nodes"`
	Clients  int           `json:"clients"`
	Locks    int           `json:"locks"`
	Rate     float64       `json:"rate"`
	Time     time.Duration `json:"time"`
	Seed     uint64        `json:"seed"`
	Rhythm   gen.Rhythm    `json:"rhythm"`           // of the faults; zero is the default
	Clocks   bool          `json:"clocks,omitempty"` // the binary has a clock that can be set
	NoGuard  bool          `json:"no_guard,omitempty"`
	Raw      bool          `json:"raw,omitempty"` // clients speak the line protocol, and repeat nothing
	// Race and Snapshots say how the binary was built: with the race detector, and to
	// take snapshots often.
	Race      bool   `json:"race,omitempty"`
	Snapshots bool   `json:"snapshots,omitempty"`
	Commit    string `json:"commit,omitempty"`
	Binary    string `json:"binary"`
	Pidstatd  string `json:"pidstatd,omitempty"` // the program, if there is a host without a node
	Store     string `json:"store"`              // directory of this run
}

// Validate says what is wrong with a configuration.
func (c Config) Validate() error {
	if _, ok := workload.Named(c.Workload); !ok {
		return fmt.Errorf("no workload %q", c.Workload)
	}
	for _, k := range c.Nemesis {
		if !nemesis.Known(k) {
			return fmt.Errorf("no fault %q", k)
		}
		if nemesis.NeedsClock(k) && !c.Clocks {
			return fmt.Errorf("fault %s needs servers with clocks that can be set", k)
		}
	}
	if !c.Snapshots && slices.ContainsFunc(c.Nemesis, nemesis.NeedsSnapshots) {
		return fmt.Errorf("%v needs servers that take snapshots often: add --snapshots", c.Nemesis)
	}
	if !c.Far() && slices.ContainsFunc(c.Nemesis, nemesis.NeedsFar) {
		return fmt.Errorf("%v: workload %s has no host without a node", c.Nemesis, c.Workload)
	}
	if c.Raw && c.Workload == "fenced" {
		return errors.New("the holders of workload fenced repeat what they ask")
	}
	switch {
	case c.Nodes < 1 || c.Nodes > 9:
		return fmt.Errorf("%d nodes: a cluster has 1 to 9", c.Nodes)
	case c.Nodes < 2 && slices.ContainsFunc(c.Nemesis, needsOthers):
		return fmt.Errorf("%v on one node: there is nobody to cut it off from", c.Nemesis)
	case c.Nodes < 3 && slices.ContainsFunc(c.Nemesis, nemesis.Removes):
		return fmt.Errorf("%v with %d nodes: no majority would be left", c.Nemesis, c.Nodes)
	case c.Clients < 1 || c.Locks < 1 || c.Rate <= 0:
		return fmt.Errorf("%d clients, %d locks, %v actions a second: all must be above 0", c.Clients, c.Locks, c.Rate)
	case c.Time < time.Second:
		return fmt.Errorf("a run of %v is too short to see anything", c.Time)
	}
	return nil
}

// Far says whether the clients are on a host of their own, without a node.
func (c Config) Far() bool {
	w, _ := workload.Named(c.Workload)
	return w.Far
}

func needsOthers(kind string) bool {
	return slices.Contains([]string{"partition", "isolate", "ring", "oneway", "transfer"}, kind)
}
