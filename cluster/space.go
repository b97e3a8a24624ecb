package cluster

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const diskEvery = time.Second

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
		if n.cfg.DataDir == "" {
			continue
		}
		free, err := freeBytes(n.cfg.DataDir)
		if err != nil {
			n.log.Warn("free disk space not known", "error", err)
			continue
		}
		low := free < n.cfg.MinFreeBytes
		if was := n.diskLow.Swap(low); low && !was {
			n.log.Error("disk nearly full: no new holds until there is space", "free_bytes", free, "wanted_bytes", n.cfg.MinFreeBytes)
			if n.office.Load() != nil && len(n.voters()) > 1 {
				n.run(func() {
					if err := n.raft.LeadershipTransfer().Error(); err != nil {
						n.log.Warn("leadership not handed over", "error", err)
					}
				})
			}
		}
	}
}

// freeBytes is what statfs(2) says an unprivileged writer may still use.
func freeBytes(dir string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return int64(s.Bavail) * s.Bsize, nil
}
