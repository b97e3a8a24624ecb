//go:build jepsen

package run_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockerd/lockerd/jepsen/db"
	"github.com/lockerd/lockerd/jepsen/history"
	"github.com/lockerd/lockerd/jepsen/nemesis"
	"github.com/lockerd/lockerd/jepsen/overlay"
	"github.com/lockerd/lockerd/jepsen/workload"
)

func TestFaultsOfServersBite(t *testing.T) {
	needSandbox(t)
	bin := t.TempDir()
	lockerd, pidstatd := filepath.Join(bin, "lockerd"), filepath.Join(bin, "pidstatd")
	goBuild(t, lockerd, slices.Concat(overlay.Snapshots, overlay.Clock, quickVotes))
	goBuild(t, pidstatd, nil)
	logs := t.TempDir()
	c, err := db.New(db.Options{Binary: lockerd, Pidstatd: pidstatd, Nodes: 3, Disks: dir, Logs: logs})
	if err != nil {
		t.Fatal(err)
	}
	g := &ground{c: c}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	g.recover(t)
	// Clients fill the logs and the snapshots.
	busy, stop := context.WithCancel(t.Context())
	mutex, _ := workload.Named("mutex")
	e := &workload.Env{Rec: history.NewRecorder(), Seed: 1, Clients: 4, Locks: 5, Rate: 100}
	for _, n := range c.Nodes {
		e.Hosts = append(e.Hosts, n.Client())
	}
	if e.HostName, err = os.Hostname(); err != nil {
		t.Fatal(err)
	}
	worked := make(chan error, 1)
	go func() { worked <- mutex.Run(busy, e) }()
	defer func() {
		stop()
		if err := <-worked; err != nil {
			t.Error(err)
		}
	}()
	for _, kind := range slices.Sorted(maps.Keys(onServers)) {
		t.Run(kind, func(t *testing.T) { onServers[kind](t, g) })
		if t.Failed() {
			for _, n := range c.Nodes {
				b, _ := os.ReadFile(n.Log)
				t.Logf("the end of the log of %s:\n%s", n.Name, b[max(0, len(b)-2000):])
			}
			return // what comes next would have to do with a cluster that is in no known state
		}
	}
}

// quickVotes lets a new server have its vote soon. It is long enough for what is to be shown.
var quickVotes = []overlay.Patch{{
	File: "cluster/members.go", Old: "promoteAfter = 5 * time.Second", New: "promoteAfter = time.Second / 2",
}}

func goBuild(t *testing.T, path string, patches []overlay.Patch) {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	args, err := overlay.Write(t.Context(), root, filepath.Join(t.TempDir(), "o"), patches)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", slices.Concat([]string{"build", "-o", path}, args, []string{"./cmd/" + filepath.Base(path)})...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v: %s", path, err, out)
	}
}

// recover waits until all servers serve.
func (g *ground) recover(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	if err := errors.Join(nemesis.Supervise(g.c), g.c.AwaitReady(ctx), g.c.AwaitServers(ctx)); err != nil {
		t.Fatal(err)
	}
}

// transfers: another one leads, in a later term.
func transfers(t *testing.T, g *ground) {
	_, term := g.c.Leader(t.Context())
	g.under(t, "transfer", 1, func(did string) {
		was, is, _ := strings.Cut(did, " to ")
		now := uint64(0)
		await(t, "somebody to lead", func() bool { _, now = g.c.Leader(t.Context()); return now > 0 })
		if was == is || is == "" || now <= term {
			t.Errorf("%q, from term %d to %d", did, term, now)
		}
	})
	g.recover(t)
}

// renews: so many servers are others afterwards.
func renews(kind string, n int) proof {
	return func(t *testing.T, g *ground) {
		before := g.voters(t)
		g.under(t, kind, 1, func(string) {})
		after := g.voters(t)
		gone := 0
		for id := range before {
			if !after[id] {
				gone++
			}
		}
		if len(after) != 3 || gone != n {
			t.Errorf("the servers were %v, and are %v", before, after)
		}
	}
}

// removes: one server is another afterwards, also where nobody has heard of it since all
// were started: then the others have its name from before.
func removes(t *testing.T, g *ground) {
	renews("member", 1)(t, g)
	last := g.c.Nodes[2]
	before := g.voters(t)
	for _, n := range g.c.Nodes {
		n.Kill()
	}
	for _, n := range g.c.Nodes[:2] {
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "two of three to have a leader", func() bool {
		voters, err := g.c.Voters(t.Context())
		return err == nil && slices.ContainsFunc(voters, func(s db.Server) bool { return s.Addr == last.Peer() && s.Name == last.Name })
	})
	was := ""
	voters, err := g.c.Voters(t.Context())
	for _, s := range voters {
		if s.Addr == last.Peer() {
			was = s.ID
		}
	}
	if err != nil || !before[was] {
		t.Fatalf("%s is none of %v: %v", last.Name, voters, err)
	}
	g.under(t, "member", killing(2), func(string) {})
	if after := g.voters(t); len(after) != 3 || after[was] {
		t.Errorf("the servers were %v, and are %v, without another %s", before, after, last.Name)
	}
}

// killing is a seed with which member takes the node of that index, and kills it first.
func killing(index int) uint64 {
	for seed := uint64(0); ; seed++ {
		rng := rand.New(rand.NewPCG(seed, 1))
		if rng.IntN(2) == 0 && rng.IntN(3) == index && rng.IntN(3) == 0 {
			return seed
		}
	}
}

// voters are the ids of the servers with votes.
func (g *ground) voters(t *testing.T) map[string]bool {
	t.Helper()
	g.recover(t)
	ids := map[string]bool{}
	await(t, "the voters to be known", func() bool {
		servers, err := g.c.Voters(t.Context())
		for _, s := range servers {
			ids[s.ID] = true
		}
		return err == nil
	})
	return ids
}

// restartsAll: all processes are others afterwards, and none was killed.
func restartsAll(t *testing.T, g *ground) {
	pids := map[string]int{}
	for _, n := range g.c.Nodes {
		pids[n.Name] = n.Pid()
	}
	g.under(t, "rolling", 1, func(did string) {
		some, _ := g.struck(t, did)
		if len(some) != len(g.c.Nodes) {
			t.Errorf("%q: not all", did)
		}
		for _, n := range some {
			if n.Pid() == pids[n.Name] || !n.Running() {
				t.Errorf("%q: %s was process %d, is %d, and runs: %v", did, n.Name, pids[n.Name], n.Pid(), n.Running())
			}
		}
	})
	g.recover(t)
}

// silences: whoever asks whether a process of the host lives has no answer, or a late one.
func silences(t *testing.T, g *ground) {
	const least = 200 * time.Millisecond // of each packet, where they take their time
	ask := func() bool {
		var c net.Conn
		err := g.c.Nodes[0].Host.Within(func() (err error) {
			c, err = net.Dial("udp", net.JoinHostPort(g.c.Far.Host.IP, db.PidstatPort))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(least))
		_, err = fmt.Fprintf(c, "PIDR %d %s\n", g.c.Far.Pid(), g.c.Far.Host.IP)
		if err == nil {
			_, err = c.Read(make([]byte, 512))
		}
		return err == nil
	}
	await(t, "pidstatd to answer", ask)
	ways := map[string]bool{}
	for seed := uint64(0); len(ways) < 4; seed++ {
		g.under(t, "mute", seed, func(did string) {
			ways[did] = true
			if ask() {
				t.Errorf("%q: it has answered", did)
			}
		})
		await(t, "pidstatd to answer", ask)
	}
}

// setsClocks: the clocks are what they were set to, as the servers see them.
func setsClocks(kind string) proof {
	return func(t *testing.T, g *ground) {
		for seed := range uint64(2) { // one may be an inconspicuous rate
			g.under(t, kind, seed, func(did string) {
				for part := range strings.SplitSeq(did, "; ") {
					some, _ := g.struck(t, part)
					_, set, _ := strings.Cut(part, ": rate ")
					is, by, _ := strings.Cut(set, ", offset ")
					var rate float64
					_, err := fmt.Sscan(is, &rate)
					offset, err2 := time.ParseDuration(by)
					if err := errors.Join(err, err2); err != nil {
						t.Fatalf("%q: %v", part, err)
					}
					for _, n := range some {
						clockGoes(t, n, rate, offset)
					}
					if rate == 1 && offset == 0 {
						t.Errorf("%q is no other clock", part)
					}
				}
			})
			for _, n := range g.c.Nodes {
				clockGoes(t, n, 1, 0)
			}
		}
		g.recover(t)
	}
}

// clockGoes waits until a node's clock goes at a rate, with an offset.
func clockGoes(t *testing.T, n *db.Node, rate float64, offset time.Duration) {
	t.Helper()
	last := clockOf(t, n)
	await(t, fmt.Sprintf("the clock of %s to have rate %v, offset %v", n.Name, rate, offset), func() bool {
		now := clockOf(t, n)
		if now == last {
			return false
		}
		r := now.Rate(last)
		last = now
		// Between its look at the kernel's clock and that at its own a process may wait.
		return math.Abs(r-rate) < 0.1*rate && (now.Offset()-offset).Abs() < time.Second/2
	})
}

func clockOf(t *testing.T, n *db.Node) (c db.Clock) {
	t.Helper()
	await(t, "the clock of "+n.Name, func() (ok bool) {
		var err error
		c, err = n.Clock()
		return err == nil
	})
	return c
}

// strobes: the clock is seen here and there, more than once.
func strobes(t *testing.T, g *ground) {
	g.under(t, "strobe", 1, func(did string) {
		some, _ := g.struck(t, did)
		_, by, _ := strings.Cut(did, ", offset ")
		by, _, _ = strings.Cut(by, ",")
		far, err := time.ParseDuration(by)
		if err != nil || far == 0 {
			t.Fatalf("%q: %v", did, err)
		}
		for _, n := range some {
			for range 3 {
				for _, at := range []time.Duration{far, 0} {
					await(t, fmt.Sprintf("the clock of %s to be at %v", n.Name, at), func() bool {
						return (clockOf(t, n).Offset() - at).Abs() < far/4
					})
				}
			}
		}
	})
	for _, n := range g.c.Nodes {
		clockGoes(t, n, 1, 0)
	}
}

// spoils: a server has refused what it found, and has said why.
func spoils(kind string) proof {
	return func(t *testing.T, g *ground) {
		const most = 20
		refused := false
		for seed := uint64(0); seed < most && !refused; seed++ {
			g.under(t, kind, seed, func(did string) {
				t.Log(did)
				some, _ := g.struck(t, did)
				if refused = strings.HasSuffix(did, "refused"); refused {
					// It has said so at its end, though others of its threads may have said more.
					b, _ := os.ReadFile(some[0].Log)
					all := strings.Split(strings.TrimSpace(string(b)), "\n")
					last := strings.Join(all[max(0, len(all)-5):], "\n")
					if !strings.Contains(last, some[0].Disk.Dir+"/data/") || !strings.Contains(last, " is damaged") {
						t.Errorf("%q: it said %q", did, last)
					}
				}
			})
			g.recover(t)
		}
		if !refused {
			t.Errorf("%d times nobody has refused what was damaged", most)
		}
	}
}
