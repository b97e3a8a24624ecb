package cluster

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/lockerd/lockerd/fsm"
)

func TestLastCommand(t *testing.T) {
	log := raft.NewInmemStore()
	for i, kind := range []raft.LogType{raft.LogCommand, raft.LogCommand, raft.LogNoop, raft.LogCommand, raft.LogBarrier, raft.LogConfiguration} {
		if err := log.StoreLog(&raft.Log{Index: uint64(i + 1), Type: kind}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ applied, commit, want uint64 }{
		{0, 0, 0},
		{1, 1, 1},
		{1, 2, 2},
		{1, 3, 2},
		{2, 3, 2},
		{2, 4, 4},
		{2, 6, 4},
		{4, 6, 4},
		{200, 100, 200}, // a snapshot has come in between
	} {
		if got, err := lastCommand(log, c.applied, c.commit); got != c.want || err != nil {
			t.Errorf("applied %d, committed %d: got %d, %v, want %d", c.applied, c.commit, got, err, c.want)
		}
	}
	if got, err := lastCommand(log, 4, 8); err == nil {
		t.Errorf("entries that are not there: got %d", got)
	}
}

// TestSimulatedReadBehindAFollower has a follower apply a grant, and tell of it, before
// its leader has: whoever is told must not be able to read that another one has the lock.
func TestSimulatedReadBehindAFollower(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSim(t, 3)
		defer s.close()
		ctx := t.Context()
		leader, f := s.leader(), s.follower()
		lock := func(owner, name string) fsm.Acquire {
			return fsm.Acquire{Owner: owner, Locks: []string{name}, Block: true}
		}
		if res, err := leader.Submit(ctx, lock("amy", "x")); err != nil || res.Code != fsm.Granted {
			t.Fatalf("%+v, %v", res, err)
		}
		told := make(chan struct{})
		_, res, err := f.Acquire(ctx, lock("bob", "x"), func(e fsm.Event) {
			if e.Kind == fsm.EventGranted {
				close(told)
			}
		})
		if err != nil || res.Code != fsm.Queued {
			t.Fatalf("%+v, %v", res, err)
		}

		// The leader's table comes to a stand behind its next entry.
		hung, gate := make(chan struct{}, 1), make(chan struct{})
		applied := leader.replica.applied
		leader.replica.applied = func(o fsm.Outcome) {
			applied(o)
			select {
			case hung <- struct{}{}:
			default:
			}
			<-gate
		}
		go func() { _, _ = leader.Submit(ctx, lock("cid", "y")) }()
		<-hung
		go func() { _, _ = leader.Submit(ctx, fsm.Release{Owner: "amy", Locks: []string{"x"}}) }()
		<-told
		read := make(chan fsm.Result, 1)
		go func() {
			res, err := leader.Status(ctx, "bob", []string{"x"})
			if err != nil {
				t.Error(err)
			}
			read <- res
		}()
		time.Sleep(100 * time.Millisecond) // virtual: time for a wrong answer
		close(gate)
		if res := <-read; res.Code != fsm.Granted {
			t.Errorf("bob has been granted x, and reads %+v", res)
		}
	})
}
