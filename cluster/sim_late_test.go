package cluster

import (
	"testing"
	"time"
)

// TestSimulatedLateLock has a node keep a LOCK while it is cut off, until its client
// has asked elsewhere and is done there. The LOCK must not take anything then: nobody
// would give it up.
func TestSimulatedLateLock(t *testing.T) {
	const request = "request 0a0000000000000000000000000000ff"
	for name, elsewhere := range map[string]func(s *sim, c *lineClient) string{
		"held still": func(_ *sim, c *lineClient) string {
			c.send(request + " 2\nLOCK\n")
			c.granted(false)
			return "ann"
		},
		"released": func(_ *sim, c *lineClient) string {
			c.send(request + " 2\nLOCK\n")
			fence := c.granted(false)
			c.send("fence %d\n", fence)
			c.release("")
			return ""
		},
		"given up": func(_ *sim, c *lineClient) string {
			c.send(request + "\n")
			c.release("")
			return ""
		},
		"told busy": func(s *sim, c *lineClient) string {
			other := s.dial(s.t.Context(), c.node, "bob")
			other.send("LOCK\n")
			other.granted(false)
			c.send(request + " 2\nblock 0\nLOCK\n")
			c.want("owner bob", "locked 0", "", "")
			other.release("")
			other.conn.Close()
			return ""
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newSim(t, 0)
				s.serveClients()
				s.grow(3)
				defer s.close()
				leader, cutOff := s.leader(), s.follower()
				late := s.dial(t.Context(), cutOff.Name(), "ann")
				s.net.Isolate(cutOff.Name() + ":1")
				time.Sleep(time.Second)
				late.send(request + " 1\nLOCK\n")
				time.Sleep(time.Second)
				c := s.dial(t.Context(), leader.Name(), "ann")
				want := elsewhere(s, c)
				s.net.Heal()
				late.want("owner ", "locked 0", "error superseded asked for again on another connection", "", "")
				late.end()
				time.Sleep(5 * time.Second)
				table, err := leader.Table(t.Context(), false)
				if err != nil {
					t.Fatal(err)
				}
				owner := ""
				for _, h := range table.Holds {
					owner += h.Owner
				}
				if owner != want || len(table.Waits) != 0 {
					t.Errorf("held by %q, not %q; %d wait", owner, want, len(table.Waits))
				}
				c.conn.Close()
			})
		})
	}
}
