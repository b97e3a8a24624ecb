package cluster

import (
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
)

const (
	diskEvery = time.Second

	// yieldTime is how long a leader without disk space keeps those waiting who want
	// new holds, while it tries to hand over to a server that can take them.
	yieldTime = 5 * time.Second
)

// space is what a node knows of the room on its disk.
type space struct {
	mu      sync.Mutex
	low     bool
	since   time.Time // low
	heirs   bool      // another server could lead
	handing bool      // a hand-over is under way
}

func (s *space) isLow() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.low
}

// set notes a measurement, and says whether space has just run low.
func (s *space) set(low bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	fell := low && !s.low
	if fell {
		s.since = time.Now()
	}
	s.low = low
	return fell
}

// yields says whether a leader, in office since from, may be about to be followed by
// one with more space.
func (s *space) yields(from time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if from.Before(s.since) {
		from = s.since
	}
	return s.low && s.heirs && time.Since(from) < yieldTime
}

// watchDisk ends the node when its disk hangs, and has it hand over and take no
// new holds while its disk is nearly full.
func (n *Node) watchDisk() {
	t := time.NewTicker(diskEvery)
	defer t.Stop()
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-t.C:
		}
		if took, hung := n.disk.hung(); hung {
			n.fail(fmt.Errorf("%w: a write to the log has hung for %v (the node stops: check the disk, then start it again)", ErrDisk, took.Round(time.Second)))
			return
		}
		if n.cfg.DataDir != "" {
			n.measureSpace()
		}
		if n.space.isLow() {
			n.yield()
		}
	}
}

func (n *Node) measureSpace() {
	free, err := freeBytes(n.cfg.DataDir)
	if err != nil {
		n.log.Warn("free disk space not known", "error", err)
		return
	}
	if n.space.set(free < n.cfg.MinFreeBytes) {
		n.log.Error("disk nearly full: no new holds until there is space", "free_bytes", free, "wanted_bytes", n.cfg.MinFreeBytes)
	}
}

// yield hands leadership to a server that has disk space, if there is one. Whoever
// runs low may have been elected since, or not have found an heir before, so this is
// tried for as long as it leads.
func (n *Node) yield() {
	heirs := n.heirs()
	n.space.mu.Lock()
	n.space.heirs = len(heirs) > 0
	idle := !n.space.handing && n.space.heirs && n.office.Load() != nil
	n.space.handing = n.space.handing || idle
	n.space.mu.Unlock()
	if !idle {
		return
	}
	// Raft hangs with its disk, and this goroutine is to notice that.
	n.run(func() {
		defer func() {
			n.space.mu.Lock()
			n.space.handing = false
			n.space.mu.Unlock()
		}()
		for _, s := range heirs {
			err := n.raft.LeadershipTransferToServer(s.ID, s.Address).Error()
			if err == nil {
				return
			}
			n.log.Warn("leadership not handed over", "to", s.ID, "error", err)
		}
	})
}

// heirs are the other voters that are in touch and have disk space.
func (n *Node) heirs() []raft.Server {
	var list []raft.Server
	for _, s := range n.voters() {
		if s.Suffrage != raft.Voter || string(s.ID) == n.id {
			continue
		}
		if p := n.peers.find(string(s.ID)); p != nil && !p.lowDisk.Load() {
			list = append(list, s)
		}
	}
	return list
}

// freeBytes is what statfs(2) says an unprivileged writer may still use.
func freeBytes(dir string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return int64(s.Bavail) * s.Bsize, nil
}
