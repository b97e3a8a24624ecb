//go:build jepsen

package run_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/jepsen/db"
	"github.com/lockerd/lockerd/jepsen/disk"
	"github.com/lockerd/lockerd/jepsen/gen"
	"github.com/lockerd/lockerd/jepsen/history"
	"github.com/lockerd/lockerd/jepsen/nemesis"
	"github.com/lockerd/lockerd/jepsen/netns"
	"github.com/lockerd/lockerd/jepsen/proc"
)

// ground is what a fault is tried on.
type ground struct {
	c *db.Cluster
}

// proof shows that a fault bites.
type proof func(t *testing.T, g *ground)

// onHosts has the faults of hosts, disks and processes. They are tried on hosts whose
// processes do nothing.
var onHosts = map[string]proof{
	"partition": cutsLinks("partition", 1, apart),
	"isolate":   cutsLinks("isolate", 4, apart),
	"ring":      cutsLinks("ring", 1, neighbours),
	"oneway":    cutsLinks("oneway", 4, oneWay),
	"clientcut": cutsLinks("clientcut", 2, noClients),
	"flap":      cutsLinks("flap", 1, noLink),
	"reset":     resets,
	"loss":      loses,
	"slow":      sendsSlowly,
	"delay":     delays("delay"),
	"reorder":   delays("reorder"),
	"kill":      ends("kill", "signal: killed"),
	"killall":   ends("killall", "signal: killed"),
	"restart":   ends("restart", "signal: terminated"),
	"pause":     stops("pause"),
	"pauselead": stops("pauselead"),
	"pauseall":  stops("pauseall"),
	"power":     forgets("power"),
	"powerall":  forgets("powerall"),
	"stall":     freezes,
	"slowdisk":  slowsDisks,
	"full":      fills,
	"ioerror":   breaksDisks,
}

// onServers has those that only servers can show.
var onServers = map[string]proof{
	"transfer":  transfers,
	"member":    removes,
	"replace":   renews("replace", 3),
	"rolling":   restartsAll,
	"mute":      silences,
	"clockjump": setsClocks("clockjump"),
	"clockrate": setsClocks("clockrate"),
	"slowlead":  setsClocks("slowlead"),
	"strobe":    strobes,
	"bitflip":   spoils("bitflip"),
	"truncate":  spoils("truncate"),
	"snapflip":  spoils("snapflip"),
	"snapcut":   spoils("snapcut"),
}

// There is no fault but one of which it is shown that it bites.
func TestEveryFaultIsTried(t *testing.T) {
	tried := slices.Sorted(maps.Keys(onHosts))
	tried = append(tried, slices.Collect(maps.Keys(onServers))...)
	slices.Sort(tried)
	if kinds := nemesis.Kinds(); !slices.Equal(tried, kinds) {
		t.Errorf("the faults are\n%v, and tried are\n%v", kinds, tried)
	}
}

func TestFaultsOfHostsBite(t *testing.T) {
	needSandbox(t)
	g := bareHosts(t, 5)
	for _, kind := range slices.Sorted(maps.Keys(onHosts)) {
		t.Run(kind, func(t *testing.T) { onHosts[kind](t, g) })
	}
}

// bareHosts are hosts with disks, and processes that sleep.
func bareHosts(t *testing.T, n int) *ground {
	t.Helper()
	w, err := netns.New(n)
	if err != nil {
		t.Fatal(err)
	}
	c := &db.Cluster{}
	for i, h := range w.Hosts() {
		name := fmt.Sprint("n", i+1)
		d, err := disk.New(dir, name+"-bare")
		if err != nil {
			t.Fatal(err)
		}
		node := &db.Node{
			Proc: &proc.Proc{Name: name, Path: "/bin/sleep", Args: []string{"1000000"}, Log: filepath.Join(dir, name+".log")},
			Host: h, Disk: d,
		}
		c.Nodes = append(c.Nodes, node)
		if err := node.Start(); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, n := range c.Nodes {
			n.Kill()
			if err := n.Disk.Close(); err != nil {
				t.Error(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return &ground{c: c}
}

// under injects a fault, and looks what there is while it lasts. It returns when the
// fault is healed.
func (g *ground) under(t *testing.T, kind string, seed uint64, look func(did string)) {
	t.Helper()
	ctx, heal := context.WithTimeout(t.Context(), 4*patience)
	defer heal()
	e := &nemesis.Env{Cluster: g.c, Rec: history.NewRecorder(), Clocks: true}
	done := make(chan error, 1)
	go func() { done <- nemesis.Run(ctx, e, []gen.Fault{{Kind: kind, For: time.Hour, Seed: seed}}) }()
	did, ended := "", false
	await(t, kind+" to be injected", func() bool {
		select {
		case err := <-done:
			ended = true
			done <- err
		default:
		}
		for _, op := range e.Rec.Ops() {
			if op.F == kind && op.Type == history.Info {
				did = op.Value
			}
		}
		return did != "" || ended
	})
	if did != "" {
		look(did)
	}
	heal()
	if err := <-done; err != nil || did == "" {
		t.Fatalf("%s, seed %d: %q, %v", kind, seed, did, err)
	}
}

// await waits until something holds.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(4 * patience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("wait for %s: it took longer than %v", what, 4*patience)
		}
	}
}

var nodeName = regexp.MustCompile(`\bn[0-9]\b`)

// struck splits the nodes into those that are named and the others.
func (g *ground) struck(t *testing.T, did string) (some, others []*db.Node) {
	t.Helper()
	names := nodeName.FindAllString(did, -1)
	if len(names) == 0 {
		t.Fatalf("%q names nobody", did)
	}
	for _, n := range g.c.Nodes {
		if slices.Contains(names, n.Name) {
			some = append(some, n)
		} else {
			others = append(others, n)
		}
	}
	return some, others
}

// ends: the processes are gone, each in the way that it ought to be, and there are new
// ones afterwards.
func ends(kind, how string) proof {
	return func(t *testing.T, g *ground) {
		g.under(t, kind, 1, func(did string) {
			some, others := g.struck(t, did)
			if kind == "killall" && len(others) > 0 {
				t.Errorf("%q: not all", did)
			}
			for _, n := range some {
				if n.Exit() != how {
					t.Errorf("%q: %s ended with %q", did, n.Name, n.Exit())
				}
			}
			for _, n := range others {
				if !n.Running() {
					t.Errorf("%q: %s does not run", did, n.Name)
				}
			}
		})
		for _, n := range g.c.Nodes {
			if !n.Running() {
				t.Errorf("%s is not started again", n.Name)
			}
		}
	}
}

func stops(kind string) proof {
	return func(t *testing.T, g *ground) {
		g.under(t, kind, 1, func(did string) {
			some, others := g.struck(t, did)
			if kind == "pauseall" && len(others) > 0 || kind == "pauselead" && len(some) != 1 {
				t.Errorf("%q are too many, or too few", did)
			}
			for _, n := range some {
				if !proc.Stopped(n.Pid()) {
					t.Errorf("%q: %s goes on", did, n.Name)
				}
			}
		})
		for _, n := range g.c.Nodes {
			await(t, n.Name+" to go on", func() bool { return stateOf(n.Pid()) != 'T' })
		}
	}
}

// stateOf is field 3 of proc_pid_stat(5).
func stateOf(pid int) byte {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if _, rest, ok := strings.Cut(string(b), ") "); ok {
		return rest[0]
	}
	return 0
}

// put writes a file, and forces it to the disk if wanted.
func put(path, text string, sync bool) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if sync {
		err = errors.Join(err, f.Sync())
	}
	return errors.Join(err, f.Close())
}

func got(n *db.Node, name string) string {
	b, _ := os.ReadFile(filepath.Join(n.Disk.Dir, name))
	return string(b)
}

// forgets: what was not forced to the disk is gone.
func forgets(kind string) proof {
	return func(t *testing.T, g *ground) {
		for _, n := range g.c.Nodes {
			err := errors.Join(put(filepath.Join(n.Disk.Dir, "synced"), "x", true), put(filepath.Join(n.Disk.Dir, "loose"), "x", false))
			if err != nil {
				t.Fatal(err)
			}
		}
		var some, others []*db.Node
		g.under(t, kind, 1, func(did string) {
			some, others = g.struck(t, did)
			for _, n := range some {
				if n.Running() {
					t.Errorf("%q: %s runs without power", did, n.Name)
				}
			}
		})
		if kind == "powerall" && len(others) > 0 {
			t.Error("not all lost their power")
		}
		for _, n := range g.c.Nodes {
			want := ""
			if slices.Contains(others, n) {
				want = "x"
			}
			if got(n, "synced") != "x" || got(n, "loose") != want || !n.Running() {
				t.Errorf("%s: there is %q and %q, and it runs: %v", n.Name, got(n, "synced"), got(n, "loose"), n.Running())
			}
		}
	}
}

func freezes(t *testing.T, g *ground) {
	g.under(t, "stall", 1, func(did string) {
		some, _ := g.struck(t, did)
		if err := some[0].Disk.Freeze(); !errors.Is(err, unix.EBUSY) {
			t.Errorf("%q: to freeze it once more says %v", did, err)
		}
	})
	for _, n := range g.c.Nodes {
		if err := put(filepath.Join(n.Disk.Dir, "f"), "x", true); err != nil {
			t.Error(err)
		}
	}
}

func slowsDisks(t *testing.T, g *ground) {
	g.under(t, "slowdisk", 1, func(did string) {
		some, _ := g.struck(t, did)
		_, rest, _ := strings.Cut(did, ": ")
		pause, err := time.ParseDuration(strings.TrimSuffix(rest, " a time"))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range some {
			await(t, "a write to wait", func() bool {
				at := time.Now()
				if err := put(filepath.Join(n.Disk.Dir, "f"), "x", true); err != nil {
					t.Fatal(err)
				}
				return time.Since(at) > pause/2
			})
		}
	})
}

func fills(t *testing.T, g *ground) {
	left := map[bool]bool{} // with some space left, and with none
	for seed := uint64(0); len(left) < 2; seed++ {
		g.under(t, "full", seed, func(did string) {
			some, _ := g.struck(t, did)
			none := strings.Contains(did, " 0 MiB")
			left[none] = true
			var s unix.Statfs_t
			if err := unix.Statfs(some[0].Disk.Dir, &s); err != nil || int64(s.Bavail)*s.Bsize > 32<<20 {
				t.Errorf("%q: there are %d bytes, %v", did, int64(s.Bavail)*s.Bsize, err)
			}
			err := put(filepath.Join(some[0].Disk.Dir, "f"), strings.Repeat("x", 1<<20), true)
			if none != errors.Is(err, unix.ENOSPC) {
				t.Errorf("%q: a write says %v", did, err)
			}
		})
	}
	for _, n := range g.c.Nodes {
		if err := put(filepath.Join(n.Disk.Dir, "f"), strings.Repeat("x", 1<<20), true); err != nil {
			t.Error(err)
		}
	}
}

// breaksDisks: what is written cannot be forced to the disk, which fsync says by EIO, and
// the process lives on to see it. What was there can be read as long as only writes fail, and
// is there afterwards.
func breaksDisks(t *testing.T, g *ground) {
	for _, n := range g.c.Nodes {
		if err := put(filepath.Join(n.Disk.Dir, "old"), "x", true); err != nil {
			t.Fatal(err)
		}
	}
	ways := map[string]bool{}
	for seed := uint64(0); len(ways) < 2; seed++ {
		g.under(t, "ioerror", seed, func(did string) {
			some, _ := g.struck(t, did)
			_, way, _ := strings.Cut(did, ": ")
			ways[way] = true
			if old := got(some[0], "old"); way == "fsync fails" && old != "x" {
				t.Errorf("%q: what was there is %q", did, old)
			}
			if !some[0].Running() {
				t.Errorf("%q: it was killed", did)
			}
			if err := forces(some[0]); !errors.Is(err, unix.EIO) {
				t.Errorf("%q: to force a write to it says %v, want %v", did, err, unix.EIO)
			}
		})
	}
	for _, n := range g.c.Nodes {
		if old := got(n, "old"); old != "x" {
			t.Errorf("%s: what was there is %q", n.Name, old)
		}
		if err := put(filepath.Join(n.Disk.Dir, "f"), strings.Repeat("x", 4<<20), true); err != nil {
			t.Error(err)
		}
	}
}

// forces overwrites a byte of a file, as a database does in a file that has its full
// length, and forces it to the disk.
func forces(n *db.Node) error {
	f, err := os.OpenFile(filepath.Join(n.Disk.Dir, "old"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte("y"), 0)
	return errors.Join(err, f.Sync(), f.Close())
}
