package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lockerd/lockerd/fsm"
	"github.com/lockerd/lockerd/pidprobe"
)

// TestAReboot restarts a node under other boots of its machine: what processes of
// the boots before held and waited for is over, and nothing else.
func TestAReboot(t *testing.T) {
	f := newFarm(t, 1, func(c *Config) { c.machine = &machine{name: "m1", boot: "b1"} })
	n := f.nodes[0]
	restart := func(name, boot string) {
		t.Helper()
		must(t, n.Close(t.Context()))
		f.confs[0].machine = &machine{name: name, boot: boot}
		n = f.start(0)
	}
	pid := int32(os.Getpid()) // lives, under another boot
	hold := func(lock, boot string, auto bool) {
		t.Helper()
		p := fsm.Process{Host: "h", PID: pid, Start: 1, Boot: boot}
		res := n.mustAcquire(t, fsm.Acquire{Owner: lock, Locks: []string{lock}, Block: true, Process: p, Autounlock: auto}, func(fsm.Event) {})
		if res.Code != fsm.Granted {
			t.Fatalf("%s: %+v", lock, res)
		}
	}
	held := func() (list []string) {
		table, err := n.Table(t.Context(), false)
		must(t, err)
		for _, h := range table.Holds {
			list = append(list, h.Owner)
		}
		for _, w := range table.Waits {
			list = append(list, "wait of "+w.Request.Owner)
		}
		slices.Sort(list)
		return list
	}
	becomes := func(what string, want ...string) {
		t.Helper()
		slices.Sort(want)
		if err := waitUntil(what, func() bool { return slices.Equal(held(), want) }); err != nil {
			t.Fatalf("%v: held %q, want %q", err, held(), want)
		}
	}

	hold("own", "b1", true)
	hold("container", "b1/4026532999", true)
	hold("unbound", "b1", false)
	hold("other", "b9/"+initialNamespace, true)
	hold("old", "", true)
	n.mustAcquire(t, fsm.Acquire{Owner: "waiter", Locks: []string{"other"}, Block: true, Process: fsm.Process{Host: "h", PID: pid, Boot: "b1"}, Autounlock: true}, func(fsm.Event) {})
	all := []string{"container", "old", "other", "own", "unbound", "wait of waiter"}

	// Not a reboot, and not to be known for one.
	restart("m1", "b1")
	hold("z1", "", false)
	becomes("restart of the program", append(slices.Clone(all), "z1")...)
	_, err := n.Submit(t.Context(), fsm.Release{Owner: "z1", Locks: []string{"z1"}})
	must(t, err)

	restart("m1", "b2")
	left := []string{"old", "other", "unbound"}
	becomes("reboot", left...)
	// What comes late, and what is of the next boot.
	hold("late", "b1", true)
	hold("next", "b2", true)
	becomes("a late one", append([]string{"next"}, left...)...)

	// Another machine goes by its own boots.
	restart("m2", "b3")
	hold("z2", "", false)
	hold("m1s", "b2", true)
	becomes("another machine", "next", "unbound", "m1s", "old", "other", "z2")

	// Back, and back: nothing is known of the time between.
	restart("", "")
	hold("z3", "", false)
	becomes("a machine that is not known", "next", "unbound", "m1s", "old", "other", "z2", "z3")
	restart("m2", "b4")
	hold("z4", "", false)
	hold("b3s", "b3", true)
	becomes("two reboots of the other machine", "next", "unbound", "m1s", "old", "other", "z2", "z3", "z4")

	if _, err := n.Anchor(fsm.Process{Host: "h", PID: pid, Boot: "b3"}, 1, func() {}); err != errOtherHost {
		t.Errorf("an anchor of a past boot: %v", err)
	}
}

// TestAnAgentsReboot is the same for an agent, which has nothing else on disk.
func TestAnAgentsReboot(t *testing.T) {
	f := newFarm(t, 1)
	server := f.nodes[0]
	held := func() (list []string) {
		table, err := server.Table(t.Context(), false)
		must(t, err)
		for _, h := range table.Holds {
			list = append(list, h.Owner)
		}
		return list
	}
	agent := func(dir, boot string, meanwhile func(*Node)) {
		t.Helper()
		a, err := Open(t.Context(), Config{
			Name: "agent", Version: "test", Agent: true, DataDir: dir, machine: &machine{name: "m", boot: boot},
			Join: []string{f.confs[0].Gossip}, Gossip: freeUDP(t), Processes: watchProcesses, Logger: testLogger("agent"),
		})
		must(t, err)
		meanwhile(a)
		must(t, a.Close(t.Context()))
	}
	hold := func(lock, boot string) func(*Node) {
		return func(a *Node) {
			t.Helper()
			p := fsm.Process{Host: "h", PID: int32(os.Getpid()), Start: 1, Boot: boot}
			res := a.mustAcquire(t, fsm.Acquire{Owner: lock, Locks: []string{lock}, Process: p, Autounlock: true}, func(fsm.Event) {})
			if res.Code != fsm.Granted {
				t.Fatalf("%s: %+v", lock, res)
			}
		}
	}
	dir := filepath.Join(t.TempDir(), "made")
	agent(dir, "b1", hold("first", "b1"))
	agent(dir, "b1", hold("second", "b1"))
	if got := held(); !slices.Equal(got, []string{"first", "second"}) {
		t.Fatalf("held %q", got)
	}
	agent(dir, "b2", func(*Node) {
		if err := waitUntil("the reboot's end of all holds", func() bool { return len(held()) == 0 }); err != nil {
			t.Fatalf("%v: held %q", err, held())
		}
	})

	// Without a directory it serves as well.
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	for i, dir := range []string{"", file} {
		agent(dir, "b3", hold(fmt.Sprint("without", i), "b3"))
	}
	damaged := t.TempDir()
	must(t, os.WriteFile(filepath.Join(damaged, agentFile), []byte("{"), 0o600))
	agent(damaged, "b3", hold("damaged", "b3"))
}

func TestBootsOfAMachine(t *testing.T) {
	dir := t.TempDir()
	note := func(m machine) []string {
		t.Helper()
		id, err := openIdentity(dir)
		must(t, err)
		past, err := id.boots(m)
		must(t, err)
		return past
	}
	for i, c := range []struct {
		m    machine
		past string
	}{
		{machine{}, ""},
		{machine{"a", "1"}, ""},
		{machine{"a", "1"}, ""},
		{machine{"a", "2"}, "1"},
		{machine{}, ""},
		{machine{"a", "2"}, "1"},
		{machine{"a", "3"}, "1 2"},
		{machine{"a", "1"}, "2 3"}, // a snapshot of a virtual machine
		{machine{"b", "4"}, ""},
		{machine{"b", "5"}, "4"},
		{machine{"a", "6"}, ""},
	} {
		if got := strings.Join(note(c.m), " "); got != c.past {
			t.Errorf("step %d, %+v: past boots %q, want %q", i, c.m, got, c.past)
		}
	}
	for i := range 2 * maxPast {
		note(machine{"a", fmt.Sprint("x", i)})
	}
	past := note(machine{"a", fmt.Sprint("x", 2*maxPast-1)})
	if len(past) != maxPast || past[maxPast-1] != fmt.Sprint("x", 2*maxPast-2) {
		t.Errorf("%d boots remembered: %q", len(past), past)
	}
	info, err := os.Stat(filepath.Join(dir, identityFile))
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v: the machine id is for root", info.Mode())
	}
}

// TestThisMachine: the kernel's boot, where that can be known.
func TestThisMachine(t *testing.T) {
	m := thisMachine("h")
	boot, namespace, _ := strings.Cut(pidprobe.Here(), "/")
	if _, err := os.Stat(machineIDFile); err != nil || namespace != initialNamespace {
		if m != (machine{}) {
			t.Errorf("in a container, or without a machine id: %+v", m)
		}
		return
	}
	if m.boot != boot || !strings.HasSuffix(m.name, " h") {
		t.Errorf("%+v, booted %s", m, boot)
	}
	if got := thisMachine(""); got != (machine{}) {
		t.Errorf("without a name: %+v", got)
	}
}
