package systest

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lockerd/lockerd/client"
	"github.com/lockerd/lockerd/systest/farm"
)

// The first host of a list is dead: the next one serves.
func TestAListOfServers(t *testing.T) {
	f := start(t, farm.Options{Servers: 3})
	lead := leader(t, f)
	var others []string
	for _, n := range f.Followers(lead) {
		others = append(others, n.Host)
	}
	lead.Kill()
	// As environment: a list with colons, and one port for all.
	t.Setenv("IPCLOCKER_HOST", strings.Join(append([]string{lead.Host}, others...), ":"))
	t.Setenv("IPCLOCKER_PORT", fmt.Sprint(lead.Port))
	ctx := limited(t, time.Minute)
	l, err := client.Acquire(ctx, client.Options{Locks: []string{"one"}})
	must(t, err)
	if !l.Locked() {
		t.Error("not locked")
	}
	must(t, l.Unlock(ctx))
}

// What is left of a cluster without a quorum turns new clients away, so that they
// try elsewhere, keeps those that wait, and serves again by itself.
func TestWithoutAQuorum(t *testing.T) {
	f := start(t, farm.Options{Servers: 3})
	left := f.Followers(leader(t, f))[0]
	holder := connect(t, left.Client())
	must(t, holder.lock("holder", "one", granted))
	queued := connect(t, left.Client())
	must(t, queued.send("user queued\nlocks one\nblock 1\nLOCK\n\n"))
	if _, _, err := queued.waiting(1, granted); err != nil {
		t.Fatal(err)
	}
	late, late2 := connect(t, left.Client()), hello(t, left.Client())

	began := time.Now()
	var dead []*farm.Node
	for _, n := range f.Followers(left) {
		n.Kill()
		dead = append(dead, n)
	}
	// Asked for without a quorum, on connections that there are already.
	must(t, late.send("user late\nlocks two\nblock 1\nLOCK\n\n"))
	must(t, late2.send("user late2\nlocks three\nblock 1\nLOCK\n\n"))
	await(t, granted, "new connections to be refused", func() error {
		w, err := dial(left.Client())
		if err != nil {
			return nil
		}
		return errors.Join(errors.New("connected"), w.Close())
	})
	if took := time.Since(began); took < 2*time.Second {
		t.Errorf("refused after %v already: an election must not turn clients away", took)
	}
	if err := left.Ready(t.Context()); err == nil {
		t.Error("it is ready")
	}
	b, err := late.status(time.Minute)
	if took := time.Since(began); err != nil || b.fault != "no_leader" || took < 5*time.Second || took > 30*time.Second {
		t.Errorf("an old client that asks: %q after %v, %v; want the error no_leader after about 10 s", b.lines, took, err)
	}
	b, err = late2.status(time.Minute)
	if err != nil || !strings.HasPrefix(b.fault, "no_leader ") || !strings.Contains(b.fault, "1 of 3") {
		t.Errorf("a client that asks: %q, %v; want what is missing", b.lines, err)
	}

	must(t, dead[0].Start())
	ready(t, f)
	await(t, granted, "new connections", func() error {
		w, err := dial(left.Client())
		if err == nil {
			err = w.Close()
		}
		return err
	})
	// The wait from before has outlived it all.
	must(t, holder.unlock("holder", "one", granted))
	must(t, queued.grant("queued", granted))
	must(t, connect(t, left.Client()).lock("new", "four", granted))
}
