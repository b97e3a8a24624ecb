package cluster

import (
	"context"
	"errors"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/lockerd/lockerd/fsm"
)

// faultyLog is a log whose writes fail or hang on demand.
type faultyLog struct {
	raft.LogStore
	mu   sync.Mutex
	err  error
	hang chan struct{} // writes wait until it is closed
}

func (f *faultyLog) set(err error, hang chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err, f.hang = err, hang
}

func (f *faultyLog) StoreLogs(ls []*raft.Log) error {
	f.mu.Lock()
	err, hang := f.err, f.hang
	f.mu.Unlock()
	if hang != nil {
		<-hang
	}
	if err != nil {
		return err
	}
	return f.LogStore.StoreLogs(ls)
}

func (f *faultyLog) StoreLog(l *raft.Log) error { return f.StoreLogs([]*raft.Log{l}) }

// ended waits for the end of a node by itself and checks what it says.
func ended(t *testing.T, n *Node, want string) {
	t.Helper()
	select {
	case <-n.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("the node goes on")
	}
	err := n.Err()
	if !errors.Is(err, ErrDisk) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %q: want one line about the disk with %q", err, want)
	}
	if err := n.Close(context.Background()); err != nil {
		t.Errorf("close: %v", err)
	}
}

// TestADiskErrorEndsTheNode has a write to the log fail under a waiting client. (In
// real time: the failed call never returns, so a bubble would not end.)
func TestADiskErrorEndsTheNode(t *testing.T) {
	s := newSim(t, 0)
	log := &faultyLog{LogStore: raft.NewInmemStore()}
	s.configure = func(c *Config) { c.Stores.Log = log }
	s.grow(1)
	n := s.leader()
	log.set(syscall.EIO, nil)
	_, _, err := n.Acquire(context.Background(), fsm.Acquire{Owner: "amy", Locks: []string{"a"}}, func(fsm.Event) {})
	if !errors.Is(err, ErrClosed) {
		t.Errorf("acquire: %v", err)
	}
	ended(t, n, "write log: input/output error")
}

func TestAHungDiskEndsTheNode(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSim(t, 0)
		log := &faultyLog{LogStore: raft.NewInmemStore()}
		s.configure = func(c *Config) {
			if c.Name == "n1" {
				c.Stores.Log = log
			}
		}
		s.grow(3)
		s.leader()
		n := s.nodes["n1"]
		hang := make(chan struct{})
		log.set(nil, hang)
		began := time.Now()
		go func() {
			_, _ = n.Submit(context.Background(), fsm.Release{Owner: "amy", Locks: []string{"a"}})
		}()
		ended(t, n, "has hung for")
		if took := time.Since(began); took > diskHang+5*time.Second {
			t.Errorf("noticed after %v", took)
		}
		delete(s.nodes, "n1")
		if _, err := s.leader().Submit(context.Background(), fsm.Release{Owner: "bob", Locks: []string{"a"}}); err != nil {
			t.Errorf("the others: %v", err)
		}
		close(hang)
		s.close()
	})
}

// TestAHangBehindAnotherWrite has the log cut while an append hangs: the end of
// the cut says nothing of the append.
func TestAHangBehindAnotherWrite(t *testing.T) {
	bubble(t, func(t *testing.T) {
		hang := make(chan struct{})
		log := &faultyLog{LogStore: raft.NewInmemStore(), hang: hang}
		d := newGuardedDisk(&Stores{Log: log}, func(error) {})
		go func() { _ = d.StoreLog(&raft.Log{Index: 1}) }()
		synctest.Wait()
		if err := d.DeleteRange(1, 0); err != nil {
			t.Fatal(err)
		}
		if _, hung := d.hung(); hung {
			t.Error("hung at once")
		}
		time.Sleep(diskHang + time.Second)
		if took, hung := d.hung(); !hung {
			t.Errorf("not hung after %v", took)
		}
		close(hang)
		synctest.Wait()
		if took, hung := d.hung(); hung {
			t.Errorf("hung for %v without a write", took)
		}
	})
}
