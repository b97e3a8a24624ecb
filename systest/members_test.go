package systest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockerd/lockerd/systest/farm"
)

// post has a node carry out an operator's command.
func post(n *farm.Node, path string, body map[string]any, reply any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	resp, err := http.Post("http://"+n.HTTP()+path, "application/json", bytes.NewReader(b))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if b, err = io.ReadAll(resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%d: %s", resp.StatusCode, strings.TrimSpace(string(b)))
	}
	return json.Unmarshal(b, reply)
}

// Leadership goes where an operator wants it, by way of any node, while clients wait.
func TestTransfer(t *testing.T) {
	f := start(t, farm.Options{Servers: 3, Agents: 1})
	old := leader(t, f)
	var others []*farm.Node
	for _, n := range f.Nodes[:3] {
		if n != old {
			others = append(others, n)
		}
	}
	agent := f.Nodes[3]
	holder, waiter := connect(t, agent.Client()), connect(t, old.Client())
	must(t, holder.lock("holder", "one", granted))
	must(t, waiter.send("user waiter\nlocks one\nblock 1\nLOCK\n\n"))
	if _, _, err := waiter.waiting(1, granted); err != nil {
		t.Fatal(err)
	}
	var got struct{ Leader string }
	for _, by := range []*farm.Node{agent, old, others[0], others[1]} {
		for _, to := range []string{others[0].Name, "", old.Name} {
			was := leader(t, f)
			must(t, post(by, "/v1/transfer", map[string]any{"to": to}, &got))
			if to != "" && got.Leader != to || to == "" && got.Leader == was.Name {
				t.Fatalf("asked of %s for %q while %s led: %s leads", by.Name, to, was.Name, got.Leader)
			}
			if now := leader(t, f); now.Name != got.Leader {
				t.Fatalf("%s was said to lead, %s does", got.Leader, now.Name)
			}
		}
	}
	must(t, holder.unlock("holder", "one", granted))
	must(t, waiter.grant("waiter", granted))

	others[0].Kill()
	await(t, granted, "a dead server to be refused", func() error {
		err := post(agent, "/v1/transfer", map[string]any{"to": others[0].Name}, &got)
		if err == nil || !strings.Contains(err.Error(), "409") || !strings.Contains(err.Error(), "not in touch") {
			return fmt.Errorf("%s leads, %v", got.Leader, err)
		}
		return nil
	})
	must(t, post(agent, "/v1/transfer", map[string]any{"to": ""}, &got))
	if got.Leader != others[1].Name {
		t.Errorf("%s leads, want the only other one that lives", got.Leader)
	}
	for _, to := range []string{agent.Name, "nobody"} {
		if err := post(old, "/v1/transfer", map[string]any{"to": to}, &got); err == nil || !strings.Contains(err.Error(), "409") {
			t.Errorf("to %s: %v", to, err)
		}
	}
	// A lock does not take longer than ever, but for what else the machine has to do.
	took := granted
	for i := 0; i < 3 && took > time.Second; i++ {
		began := time.Now()
		must(t, connect(t, old.Client()).lock("later", fmt.Sprint("two", i), granted))
		took = time.Since(began)
	}
	if took > time.Second {
		t.Errorf("a lock took %v", took)
	}
}

// fetch reads what a node answers at path.
func fetch(n *farm.Node, path string, reply any) error {
	resp, err := http.Get("http://" + n.HTTP() + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(reply)
}

// member is a server as others see it.
type member struct {
	Name  string
	ID    string
	Addr  string
	Voter bool
	Note  string
}

// removedEnd waits until a server has ended because it was removed, and has said so
// that many times.
func removedEnd(t *testing.T, n *farm.Node, times int) {
	t.Helper()
	code, err := n.AwaitExit(limited(t, granted))
	if want := "this server was removed from the cluster: wipe " + n.DataDir() + " to let it join again as a new one"; err != nil || code != 78 || strings.Count(n.Log(), want) != times {
		t.Fatalf("%s ended with %d, %v, and said\n%s", n.Name, code, err, lastLines(n.Log(), 10))
	}
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// Servers are removed, the leader and dead ones among them, stay out, and come back
// as new ones. What is held and waited for stays.
func TestRemove(t *testing.T) {
	f := start(t, farm.Options{Servers: 6, Agents: 1})
	agent, lead := f.Nodes[6], leader(t, f)
	var others []*farm.Node
	for _, n := range f.Nodes[:6] {
		if n != lead {
			others = append(others, n)
		}
	}
	follower, stays, dead, wiped := others[0], others[1], others[2], others[3]
	third := others[4]

	// A client of each node that is to go, and one whose node stays.
	atFollower, atLead, waiter := connect(t, follower.Client()), connect(t, lead.Client()), connect(t, stays.Client())
	must(t, atFollower.lock("f", "one", granted))
	must(t, atLead.lock("l", "two", granted))
	must(t, waiter.send("user waiter\nlocks one\nblock 1\nLOCK\n\n"))
	if _, _, err := waiter.waiting(1, granted); err != nil {
		t.Fatal(err)
	}

	var got member
	for _, n := range []*farm.Node{follower, lead} {
		// The leader by its own word: it hands over, and answers before it ends.
		by := agent
		if n == lead {
			by = lead
		}
		must(t, post(by, "/v1/remove", map[string]any{"node": n.Name}, &got))
		if got.Name != n.Name || got.Addr != n.Peer() || got.ID == "" {
			t.Errorf("removed %s: %+v", n.Name, got)
		}
		removedEnd(t, n, 1)
		must(t, n.Start())
		removedEnd(t, n, 2)
	}
	var again member
	if must(t, post(stays, "/v1/remove", map[string]any{"node": got.ID}, &again)); again != got {
		t.Errorf("removed again: %+v, want %+v", again, got)
	}
	// Its clients have been sent away, and what they have stays theirs.
	if b, err := atFollower.status(granted); err == nil && b.fault != "stopping" {
		t.Errorf("a client of the removed server is told %q", b.lines)
	}
	must(t, connect(t, stays.Client()).unlock("f", "one", granted))
	must(t, waiter.grant("waiter", granted))
	must(t, connect(t, dead.Client()).unlock("l", "two", granted))

	// Dead, and removed before it is back: it hears of it when it comes.
	dead.Kill()
	await(t, granted, "a dead server to be removed", func() error {
		return post(agent, "/v1/remove", map[string]any{"node": dead.Name}, &got)
	})
	must(t, dead.Start())
	removedEnd(t, dead, 1)

	// A new one in place of the first that went, for the end.
	must(t, os.RemoveAll(follower.DataDir()))
	must(t, follower.Start())

	// One that has lost its data is not taken for what it was.
	wiped.Kill()
	must(t, os.RemoveAll(wiped.DataDir()))
	must(t, wiped.Start())
	var old string
	for _, by := range []*farm.Node{stays, agent} {
		await(t, time.Minute, "word of the server without its data from "+by.Name, func() error {
			var list []member
			if err := fetch(by, "/v1/members", &list); err != nil {
				return err
			}
			for _, m := range list {
				if _, id, ok := strings.Cut(m.Note, "has come back without its data: lockctl remove "); m.Name == wiped.Name && ok {
					old, _, _ = strings.Cut(id, ",")
					return nil
				}
			}
			return fmt.Errorf("%+v", list)
		})
	}
	await(t, granted, "the leader to say so", func() error {
		var s string
		for _, n := range []*farm.Node{stays, third} {
			s += n.Log()
		}
		if strings.Count(s, wiped.Name+" has come back without its data: lockctl remove "+old+", then it is taken in") != 1 {
			return errors.New(lastLines(s, 10))
		}
		return nil
	})
	if err := post(agent, "/v1/remove", map[string]any{"node": wiped.Name}, &got); err == nil || !strings.Contains(err.Error(), "409") || !strings.Contains(err.Error(), old) {
		t.Errorf("remove by a name that two have: %v", err)
	}
	must(t, post(agent, "/v1/remove", map[string]any{"node": old}, &got))
	await(t, time.Minute, "votes for both new servers", func() error {
		var s struct{ Servers []member }
		if err := fetch(stays, "/v1/status", &s); err != nil {
			return err
		}
		names := ""
		for _, v := range s.Servers {
			if v.Voter {
				names += " " + v.Name
			}
		}
		want := []string{follower.Name, stays.Name, wiped.Name, third.Name}
		slices.Sort(want)
		if names != " "+strings.Join(want, " ") {
			return fmt.Errorf("%s have a vote, want %v", names, want)
		}
		return nil
	})
	if err := post(agent, "/v1/remove", map[string]any{"node": agent.Name}, &got); err == nil || !strings.Contains(err.Error(), "is an agent") {
		t.Errorf("remove an agent: %v", err)
	}
	must(t, connect(t, wiped.Client()).lock("new", "three", granted))
}
