package systest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/lockerd/lockerd/systest/farm"
)

// An agent has no vote and no log, and serves clients as a server does.
func TestAnAgentServes(t *testing.T) {
	f := start(t, farm.Options{Servers: 3, Agents: 1})
	agent, lead := f.Nodes[3], leader(t, f)
	at := agent.Client()

	holder := connect(t, at)
	must(t, holder.lock("holder", "one", granted))
	for _, c := range []struct{ request, want string }{
		{"user other\nlocks one\nblock 0\nLOCK", "owner holder\nlocked 0\n\n\n"},
		{"user other\nlocks one\nSTATUS", "owner holder\nlocked 0\n\n\n"},
		{"user holder\nlocks one\nSTATUS", "owner holder\nlocked 1\nlockname one\n\n\n"},
		{"LOCK_LIST", "lock one holder\n\n\n"},
	} {
		if got, err := ask(at, c.request, granted); err != nil || got != c.want {
			t.Errorf("%q: %q, %v; want %q", c.request, got, err, c.want)
		}
	}
	// The servers know of it too.
	if got, err := ask(lead.Client(), "LOCK_LIST", granted); err != nil || got != "lock one holder\n\n\n" {
		t.Errorf("at the leader: %q, %v", got, err)
	}

	var waiters []*wire
	for i := range 5 {
		w := connect(t, at)
		must(t, w.send("user w%d\nlocks one\nblock 1\ntimeout 600\nLOCK\n\n", i))
		if owner, _, err := w.waiting(1, granted); err != nil || owner != "holder" {
			t.Fatalf("waiter %d: behind %q, %v", i, owner, err)
		}
		waiters = append(waiters, w)
	}
	lead.Kill()
	must(t, holder.unlock("holder", "one", granted))
	for i, w := range waiters {
		user := fmt.Sprint("w", i)
		b, err := w.status(granted)
		if err != nil || !b.locked || !b.obtained || b.owner != user {
			t.Fatalf("%s: %q, %v", user, b.lines, err)
		}
		must(t, w.unlock(user, "one", granted))
	}
	if got, err := ask(at, "LOCK_LIST", granted); err != nil || strings.TrimSpace(got) != "" {
		t.Errorf("in the end: %q, %v", got, err)
	}
	must(t, lead.Start())
	ready(t, f)
}
