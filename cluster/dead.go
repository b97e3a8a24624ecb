package cluster

import (
	"context"
	"fmt"
	"strings"

	"github.com/lockerd/lockerd/fsm"
	"github.com/lockerd/lockerd/pidprobe"
)

// Dead takes a client's word that a process has ended, which is a hint and no
// more: the node on that process's host looks for itself. Only where none of our
// nodes can look is the client believed, as the original server believed it.
func (n *Node) Dead(ctx context.Context, p fsm.Process) error {
	own := n.onHost(n.host, p.Host) || p.Host == n.cfg.Host && p.Host != ""
	if own {
		boot, _, _ := strings.Cut(p.Boot, "/")
		if pidprobe.Check(pidprobe.Process{PID: p.PID, Start: p.Start, Boot: boot}) != pidprobe.Dead {
			return nil
		}
	} else if n.gossip != nil {
		for _, m := range n.gossip.all() {
			if m.ID != n.id && n.onHost(m.Host, p.Host) {
				return n.pass(ctx, m, p)
			}
		}
	}
	if n.replica == nil {
		_, err := n.askServer(ctx, askDead, mustJSON(p))
		return err
	}
	var list []charge
	err := n.view(ctx, func(m *fsm.Machine) {
		holds, waits := m.ByProcess(p.Host, p.PID)
		for _, h := range holds {
			list = append(list, charge{Process: h.Process, Fence: h.Fence})
		}
		for _, w := range waits {
			list = append(list, charge{Process: w.Request.Process, Ticket: w.Ticket})
		}
	})
	if err != nil {
		return err
	}
	gone := fsm.ProcessGone{Process: p}
	for _, c := range list {
		switch {
		case own && !n.liveness.place.lost(c.Process):
		case c.Fence != 0:
			gone.Fences = append(gone.Fences, c.Fence)
		default:
			gone.Tickets = append(gone.Tickets, c.Ticket)
		}
	}
	gone.Fences = n.unanchored(ctx, gone.Fences)
	if len(gone.Fences)+len(gone.Tickets) == 0 {
		return nil
	}
	_, err = n.Submit(ctx, gone)
	return err
}

// lost looks whether a process of this host's name is dead. That is to be done after
// the table has been read: the number may be another's meanwhile. It may also count in
// a container, where this node sees nothing.
func (p place) lost(q fsm.Process) bool {
	return (q.Boot == "" || p.has(q)) && pidprobe.Check(probed(q)) == pidprobe.Dead
}

// pass hands the hint to the node on the process's own host. If it can't be
// reached, nothing is known, and nothing happens.
func (n *Node) pass(ctx context.Context, m gossiped, p fsm.Process) error {
	n.mu.Lock()
	l := n.links[m.ID]
	n.mu.Unlock()
	if l == nil {
		return fmt.Errorf("node %s, which could look for process %d, is not in reach", m.Name, p.PID)
	}
	_, err := l.ask(ctx, askDead, mustJSON(p))
	return err
}

// onHost reports whether two host names mean the same host: clients send the
// fully qualified name where they know one.
func (n *Node) onHost(own, name string) bool {
	if own == "" || name == "" {
		return false
	}
	short := func(s string) string { s, _, _ = strings.Cut(s, "."); return s }
	if strings.Contains(own, ".") && strings.Contains(name, ".") {
		return own == name
	}
	return short(own) == short(name)
}
