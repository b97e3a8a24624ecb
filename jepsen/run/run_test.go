package run

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerd/lockerd/jepsen/check"
	"github.com/lockerd/lockerd/jepsen/history"
)

// TestClientsGoOnUntilALockIsGot ends the faults when all locks are held by processes that
// have just died, which takes seconds to be noticed. Clients that end before that have got
// no lock since the last heal, and the cluster is to blame for nothing.
func TestClientsGoOnUntilALockIsGot(t *testing.T) {
	const never = time.Hour
	tests := []struct {
		name  string
		dies  time.Duration // after the last heal, when somebody does; never before it
		gets  time.Duration // likewise
		least time.Duration // that clients go on
		most  time.Duration
		want  check.Verdict
	}{
		{"at once", 0, time.Millisecond, afterwards, afterwards + lookEvery, check.Pass},
		{"late", 0, 7 * time.Second, 7 * time.Second, 7*time.Second + lookEvery, check.Pass},
		{"nobody has died", 5 * time.Second, time.Millisecond, 5 * time.Second, 5*time.Second + lookEvery, check.Pass},
		{"too late", 0, 17 * time.Second, 17 * time.Second, 17*time.Second + lookEvery, check.Fail},
		{"never", 0, never, workTime, afterwards + workTime + lookEvery, check.Fail},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &session{Config: Config{Workload: "faraway"}, rec: history.NewRecorder()}
				get := func() {
					op := history.Op{Process: 1, Type: history.Invoke, F: history.Acquire, Locks: []string{"l"}, Owner: "u1"}
					s.rec.Add(op)
					op.Type, op.Fence = history.OK, 1
					s.rec.Add(op)
				}
				get() // before the last heal: that does not count
				healed := s.rec.Now()
				time.AfterFunc(tt.dies, func() {
					s.rec.Add(history.Op{Process: 1, Type: history.Info, F: history.Death, Owner: "u1"})
				})
				defer time.AfterFunc(tt.gets, get).Stop()
				s.goOn(t.Context(), healed)
				if took := s.rec.Now() - healed; took < tt.least || took > tt.most {
					t.Errorf("clients went on for %v, want %v to %v", took, tt.least, tt.most)
				}
				end := check.End{Workload: s.Workload, Loses: true, Healed: healed, Recover: time.Millisecond}
				for _, r := range check.All(check.Input{Ops: s.rec.Ops(), End: end}) {
					if r.Check == "it recovers" && r.Verdict != tt.want {
						t.Errorf("%s: %s %v", r.Check, r.Verdict, r.Problems)
					}
				}
			})
		})
	}
}
