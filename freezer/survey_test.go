package freezer

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// Whoever asks what an order would freeze gets that, or why it would be refused; and
// nothing has happened.
func TestExecutorSurvey(t *testing.T) {
	needIsolation(t)
	v := act(t, "sleepers 200")
	hooks, said := hooksDir(t, map[string]string{"1": ""})
	x := must(NewExecutor(ExecutorConfig{Procs: true, FS: true, HooksDir: hooks, Protect: []string{"/run/protected"}}))
	first, second, held := newFS(t, "ext4"), newFS(t, "xfs"), newFS(t, "btrfs")
	_, _ = freeze(t, Order{Targets: []Target{FileSystem(held)}, Timeout: -1})
	began := guards(t)
	tree := fmt.Sprintf(`{"targets":[{"kind":"tree","pids":[%d]}]}`, v.pid())
	for _, c := range []struct {
		action, spec string
		want         string
		err          error
	}{
		{ActionFSFreeze, fmt.Sprintf(`{"mounts":[%q,%q]}`, first, second), fmt.Sprintf("2 file systems: %s (xfs), %s (ext4)", second, first), nil},
		{ActionFSFreeze, fmt.Sprintf(`{"mounts":[%q]}`, first), fmt.Sprintf("1 file system: %s (ext4)", first), nil},
		{ActionFSFreeze, fmt.Sprintf(`{"mounts":[%q,%q]}`, first, held), "", ErrAlreadyFrozen},
		{ActionFSFreeze, fmt.Sprintf(`{"mounts":[%q]}`, first+"/lost+found"), "", ErrNotMounted},
		{ActionFSFreeze, `{"mounts":["/proc"]}`, "", ErrNotSupported},
		{ActionFSFreeze, `{"mounts":["/"]}`, "", ErrProtected},
		{ActionFSFreeze, `{"mounts":["/run"]}`, "", ErrProtected},
		{ActionFSFreeze, `{"targets":[]}`, "", ErrOrder},
		{ActionFreeze, tree, fmt.Sprintf("201 processes: %d (", v.pid()), nil},
		{ActionFreeze, `{"targets":[{"kind":"processes","pids":[1]}]}`, "", ErrSelf},
		{ActionFreeze, `{"targets":[{"kind":"tree","pids":[2147483647]}]}`, "", ErrNoTarget},
		{"checkpoint", `{}`, "", ErrOrder},
	} {
		got, err := x.Survey(t.Context(), c.action+ActionDryRun, []byte(c.spec))
		if !strings.HasPrefix(got, c.want) || (got == "") != (c.want == "") || !errors.Is(err, c.err) {
			t.Errorf("%s %s: %q, %v; want %q, %v", c.action, c.spec, got, err, c.want, c.err)
		}
		if len(got) > 1000 || len(got) > maxSurvey && !strings.HasSuffix(got, " more") {
			t.Errorf("%d bytes: %q", len(got), got)
		}
	}
	// One that does not know of it does not freeze.
	if _, err := x.Prepare(t.Context(), 7, ActionFreeze+ActionDryRun, []byte(tree), time.Minute, 0); !errors.Is(err, ErrOrder) {
		t.Error(err)
	}
	if n := stopped(t); n != 0 || frozenFS(t, first) || frozenFS(t, second) {
		t.Errorf("%d are stopped, or something is frozen", n)
	}
	if now := guards(t); len(now) != len(began) {
		t.Errorf("guards %v, before %v", now, began)
	}
	if text := heard(t, said); text != "" {
		t.Errorf("hooks were run: %s", text)
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
	off := must(NewExecutor(ExecutorConfig{}))
	for _, action := range []string{ActionFreeze, ActionFSFreeze} {
		if _, err := off.Survey(t.Context(), action+ActionDryRun, nil); !errors.Is(err, ErrOff) {
			t.Error(err)
		}
	}
}
