package run

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/lockerd/lockerd/jepsen/db"
	"github.com/lockerd/lockerd/jepsen/history"
)

// clockFile has what the servers' clocks were, where they could be set.
const clockFile = "clocks.jsonl"

// ClockSample is what a server's clock was like at a moment, as the server saw it.
type ClockSample struct {
	Time   time.Duration `json:"time"` // of the history
	Node   string        `json:"node"`
	Offset time.Duration `json:"offset"` // of its wall clock
	Rate   float64       `json:"rate"`   // of its monotonic clock since the sample before
}

// watchClocks looks at all clocks that can be set.
func (s *session) watchClocks(ctx context.Context) {
	if !s.Clocks {
		return
	}
	last := map[string]db.Clock{}
	for sleep(ctx, lookEvery) == nil {
		for _, n := range s.cluster.Nodes {
			now, err := n.Clock()
			was, seen := last[n.Name]
			if err != nil || now.Machine == was.Machine {
				continue // it is not running, or it is stopped
			}
			last[n.Name] = now
			if !seen || now.Own <= was.Own {
				continue // another process, which begins with the machine's clock
			}
			s.clocks = append(s.clocks, ClockSample{Time: s.rec.Now(), Node: n.Name, Offset: now.Offset(), Rate: now.Rate(was)})
		}
	}
}

// LoadClocks reads what the servers' clocks were in a stored run: nothing where they could
// not be set.
func LoadClocks(dir string) ([]ClockSample, error) {
	all, err := history.ReadFile[ClockSample](filepath.Join(dir, clockFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return all, err
}
