package systest

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lockerd/lockerd/cluster"
	"github.com/lockerd/lockerd/systest/farm"
)

// guardLease is how long a guard goes without a word from its lockerd.
const guardLease = 2 * orderGrace

// stopped has the lockerd of a node stand still while all nodes are frozen, for as long as
// anybody likes: it keeps its sockets, and can thaw nothing, so its guards do, and the
// others are told by the leader.
func (s *site) stopped() {
	lead, err := s.farm.AwaitLeader(limited(s.t, 30*time.Second))
	must(s.t, err)
	nodes := s.farm.Nodes[:3]
	victim := nodes[slices.IndexFunc(nodes, func(n *farm.Node) bool { return n != lead })]
	parent, child := s.sleeper()
	order := func(words ...string) string {
		return strings.TrimSpace(s.expect(0, `^\d+\n$`, lead.Name, append(words, "--timeout", "-1")...))
	}
	ids := []string{
		order("fsfreeze", s.data, "--node", all),
		order("freeze", "--node", victim.Name, "--tree", parent),
	}
	if a, b := state(parent), state(child); a != "T" || b != "T" {
		s.t.Errorf("the processes are in states %s and %s", a, b)
	}
	var looked sync.WaitGroup
	for _, v := range s.volumes {
		looked.Go(func() {
			if !v.frozen() {
				s.t.Errorf("%s is not frozen", v.dir)
			}
		})
	}
	looked.Wait()
	must(s.t, victim.Signal(syscall.SIGSTOP))
	blow := time.Now()
	thawed := map[string]time.Duration{}
	var mu sync.Mutex
	var watched sync.WaitGroup
	watch := func(what string, isThawed func() error) {
		watched.Go(func() {
			err := isThawed()
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				s.t.Errorf("%s: %v", what, err)
			}
			thawed[what] = time.Since(blow)
		})
	}
	for i, v := range s.volumes {
		watch(nodes[i].Name, func() error {
			_, err := v.written(30 * time.Second)
			return err
		})
	}
	for _, pid := range []string{parent, child} {
		watch("process "+pid, func() error {
			for until := time.Now().Add(30 * time.Second); state(pid) == "T"; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(until) {
					return errors.New("is stopped still")
				}
			}
			return nil
		})
	}
	watched.Wait()
	s.t.Logf("%s stopped; thawed after %v", victim.Name, thawed)
	bound := guardLease + slack
	if byHand() == 0 {
		bound += spare // the orders have no end of their own
	}
	for what, after := range thawed {
		if after > bound {
			s.t.Errorf("%s is thawed after %v, want %v", what, after, bound)
		}
	}
	if st := state(fmt.Sprint(victim.PID())); st != "T" {
		s.t.Fatalf("%s is in state %s", victim.Name, st)
	}
	must(s.t, victim.Signal(syscall.SIGCONT))

	for _, id := range ids {
		await(s.t, 30*time.Second, "order "+id+" to be closed", func() error {
			_, out, errs := s.run(lead.Name, "orders", "--all", "--json")
			var list cluster.OrderList
			if err := json.Unmarshal([]byte(out), &list); err != nil {
				return fmt.Errorf("%w: %s%s", err, out, errs)
			}
			i := slices.IndexFunc(list.Orders, func(o cluster.OrderInfo) bool { return fmt.Sprint(o.ID) == id })
			if i < 0 || list.Orders[i].State != "closed" {
				return fmt.Errorf("not yet: %s", out)
			}
			o := list.Orders[i]
			if want := fmt.Sprintf("node %s is out of touch", victim.Name); o.ReasonText != want {
				s.t.Errorf("order %s has ended because %q, want %q", id, o.ReasonText, want)
			}
			for _, n := range o.Nodes {
				if n.Node == victim.Name && n.Cause != "quorum" {
					s.t.Errorf("order %s: thawed there because of %q", id, n.Cause)
				}
			}
			return nil
		})
	}
	must(s.t, s.farm.AwaitReady(limited(s.t, 30*time.Second)))
	s.expect(0, "", victim.Name, "fsfreeze", "--node", all, s.data, "--", "true")
}
