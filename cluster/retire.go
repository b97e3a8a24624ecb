package cluster

import (
	"fmt"
	"time"
)

// lastWords is how long a server that was removed serves on, so that whoever asked it
// to remove itself is answered.
const lastWords = 500 * time.Millisecond

func removedFrom(dir string) error {
	return fmt.Errorf("%w: wipe %s to let it join again as a new one", ErrRemoved, dir)
}

// tellRemoved tells the servers that were removed and still have a connection here.
// Those who connect later are told when they do: see peer.meet.
func (n *Node) tellRemoved() {
	gone := n.removed()
	if len(gone) == 0 {
		return
	}
	cluster := []byte(n.clusterID())
	n.peers.mu.Lock()
	defer n.peers.mu.Unlock()
	for p := range n.peers.all {
		if gone.out(p.hello.ID) {
			p.out.send(frameRemoved, cluster)
		}
	}
}

// toldRemoved takes a server's word that this one was removed from a cluster.
func (n *Node) toldRemoved(cluster string) {
	if own := n.clusterID(); own == "" || own == cluster {
		n.retire()
	}
}

// retire ends this server because it was removed, as a server of its cluster has
// said. That is kept, so that its data is never used again: it would be without a
// vote, and no other server would have anything to do with it.
func (n *Node) retire() {
	n.mu.Lock()
	if n.retired || n.cfg.Agent {
		n.mu.Unlock()
		return
	}
	n.retired = true
	var err error
	if n.identity != nil {
		n.identity.Removed = true
		err = n.identity.save()
	}
	n.mu.Unlock()
	if err != nil {
		n.log.Error("not written down that this server was removed", "error", err)
	}
	n.run(func() {
		pause(n.ctx, lastWords)
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.err != nil || n.stopped {
			return
		}
		// Not by fail: the clients are still to be told where to go.
		n.err = removedFrom(n.cfg.DataDir)
		n.log.Error("the node stops", "error", n.err)
		close(n.done)
	})
}
