package freezer

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// strangersFreeze freezes as somebody does who knows of no guard, and says that nobody has
// thawed it when that is undone.
func strangersFreeze(t *testing.T, point string) (still func() bool) {
	t.Helper()
	tellRescuer(t, "+"+point) // its time begins anew
	command(t, "fsfreeze", "-f", point)
	return func() bool {
		f, err := openFS(must(readMounts()), point)
		if err != nil {
			t.Fatal(err)
		}
		defer f.close()
		return f.ioctl(fithaw) == nil
	}
}

// awaitEnd waits for the end of a freeze that nobody has asked to end.
func awaitEnd(t *testing.T, g *Guard) {
	t.Helper()
	await(t, "the end of the freeze", func() bool { return g.Err() != nil })
}

// A guard learns of it when somebody else thaws its file system, and leaves a freeze that
// comes after to whoever has made it.
func TestFSThawedByOthers(t *testing.T) {
	needIsolation(t)
	var points []string
	var held []*Guard
	for _, fstype := range fsTypes {
		point := newFS(t, fstype)
		g, _ := freeze(t, Order{Targets: []Target{FileSystem(point)}, Timeout: -1})
		points, held = append(points, point), append(held, g)
	}
	for _, point := range points {
		command(t, "fsfreeze", "-u", point)
	}
	var still []func() bool
	for i, g := range held {
		awaitEnd(t, g)
		if err := g.Err(); !errors.Is(err, ErrBroken) || !strings.HasSuffix(err.Error(), ": file system "+points[i]) {
			t.Errorf("%s: %v", fsTypes[i], err)
		}
		still = append(still, strangersFreeze(t, points[i]))
	}
	await(t, "the guards' end", func() bool { return len(guards(t)) == 0 })
	cleanRun(t)
	for i, point := range points {
		if s := query(t, point); !s.Frozen || s.By != nil {
			t.Errorf("%s: %+v", fsTypes[i], s)
		}
		if !still[i]() {
			t.Errorf("%s: the guard has thawed what is not its own", fsTypes[i])
		}
	}
}

// What was frozen with it is thawed, and what another guard has frozen is not.
func TestFSThawedByOthersInPart(t *testing.T) {
	needIsolation(t)
	first, second, other := newFS(t, "btrfs"), newFS(t, "xfs"), newFS(t, "ext4")
	g, _ := freeze(t, Order{Targets: []Target{FileSystem(first), FileSystem(second)}, Timeout: -1})
	beside, _ := freeze(t, Order{Targets: []Target{FileSystem(other)}, Timeout: -1})
	command(t, "fsfreeze", "-u", second)
	awaitEnd(t, g)
	if err := g.Err(); !errors.Is(err, ErrBroken) || !strings.HasSuffix(err.Error(), ": file system "+second) {
		t.Error(err)
	}
	if frozenFS(t, first) || frozenFS(t, second) {
		t.Error("something of a broken freeze is left")
	}
	if s := query(t, other); !s.Frozen || s.By == nil || beside.Err() != nil {
		t.Errorf("the other guard's: %+v, %v", s, beside.Err())
	}
	thaw(t, beside)
}

// The same for a freeze that lasts without its requester: whoever has adopted it hears of
// it, and it can be frozen again without more ado.
func TestFSThawedByOthersDetached(t *testing.T) {
	needIsolation(t)
	point := newFS(t, "xfs")
	s, err := FreezeFS(t.Context(), point, -1)
	if err != nil {
		t.Fatal(err)
	}
	g, err := Adopt("", s.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.State(); err != nil { // it knows of us
		t.Fatal(err)
	}
	command(t, "fsfreeze", "-u", point)
	awaitEnd(t, g)
	if err := g.Err(); !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), point) {
		t.Error(err)
	}
	cleanRun(t)
	if s, err := FreezeFS(t.Context(), point, -1); err != nil || s.Guard == 0 {
		t.Errorf("again: %+v, %v", s, err)
	}
	if err := ThawFS(t.Context(), point); err != nil {
		t.Error(err)
	}
}

// Who has asked an executor for it is told that it was thawed on the host itself.
func TestFSThawedByOthersInOrder(t *testing.T) {
	needIsolation(t)
	x := must(NewExecutor(ExecutorConfig{FS: true}))
	point := newFS(t, "ext4")
	p, err := x.Prepare(t.Context(), 7, ActionFSFreeze, fmt.Appendf(nil, `{"mounts":[%q]}`, point), -1, 0)
	if err == nil {
		_, err = p.Freeze(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	command(t, "fsfreeze", "-u", point)
	await(t, "the end of the order", func() bool { return p.Err() != nil })
	if p.Cause() != CauseLocal || !errors.Is(p.Err(), ErrBroken) || !strings.Contains(p.Err().Error(), point) {
		t.Errorf("%q, %v", p.Cause(), p.Err())
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
	cleanRun(t)
}

// A thaw of ours is nobody else's, whenever the guard looks; and a guard that looks for
// days needs no memory for it.
func TestFSAwait(t *testing.T) {
	needIsolation(t)
	h := &fsHolding{}
	for _, fstype := range fsTypes {
		var options []string
		if fstype == "xfs" {
			options = []string{"inode32"}
		}
		point := newFS(t, fstype, options...)
		mounts := must(readMounts())
		h.systems = append(h.systems, must(openFS(mounts, point)))
	}
	for _, by := range []string{"us", "others"} {
		if err := h.freeze(t.Context(), func(...entry) error { return nil }, &Report{}); err != nil {
			t.Fatal(err)
		}
		for _, f := range h.systems {
			n := testing.AllocsPerRun(50, func() {
				if frozen, err := f.look(); !frozen || err != nil {
					t.Error(f, frozen, err)
				}
			})
			if n != 0 && !raceEnabled {
				t.Errorf("%s: a look allocates %v times", f, n)
			}
		}
		said := make(chan string, 1)
		go func() { said <- h.await() }()
		want := ""
		if by == "others" {
			rescue(h.systems[1].path)
			want = h.systems[1].String()
		} else if err := h.thaw(); err != nil {
			t.Fatal(err)
		}
		if got := <-said; got != want {
			t.Errorf("thawed by %s, it says %q", by, got)
		}
		if by == "others" {
			still := strangersFreeze(t, h.systems[1].path)
			if err := h.thaw(); err != nil {
				t.Fatal(err)
			}
			if !still() {
				t.Error("it has thawed what is not its own any more")
			}
			if got := h.finish(); got != want {
				t.Errorf("in the end it says %q", got)
			}
		}
		for _, f := range h.systems {
			if frozenFS(t, f.path) {
				t.Errorf("%s is frozen", f)
			}
		}
		h.thawing.Store(false)
	}
}
