package freezer

import (
	"bytes"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

const sampleStat = "1234 (x) T 1 (y Z) S 7 1234 99 0 -1 4194560 150 0 0 0 0 0 0 0 20 0 3 0 987654 8192000 300 18446744073709551615 1\n"

func TestParseStat(t *testing.T) {
	got, err := parseStat([]byte(sampleStat))
	want := stat{pid: 1234, parent: 7, session: 99, state: 'S', flags: 4194560, threads: 3, start: 987654}
	if err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if s, err := parseStat([]byte("1234 (x) R 0 -1 -1 0 -1 4194560 150 0 0 0 0 0 0 0 20 0 0 0 987654 0 0")); err != nil || !s.ended() {
		t.Errorf("reaped meanwhile: %+v, %v", s, err)
	}
	own, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	if s, err := parseStat(own); err != nil || int(s.pid) != os.Getpid() || int(s.parent) != os.Getppid() || s.start == 0 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, text := range []string{"", "1", "1 (x", "1 (x)", "1 (x) S", "1 (x) S -3", "x (x) S 1 1 1", strings.Replace(sampleStat, "987654", "x", 1)} {
		if s, err := parseStat([]byte(text)); err == nil {
			t.Errorf("%q: %+v", text, s)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte(sampleStat))
	f.Add([]byte("1 () R 0 0 0 0 0 0"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := parseStat(text)
		if err == nil && (s.pid < 0 || s.parent < 0 || s.threads < 0) {
			t.Errorf("%+v", s)
		}
	})
}

// FuzzProc reads what else of proc(5) has more than a number in it.
func FuzzProc(f *testing.F) {
	f.Add("3: FLOCK  ADVISORY  WRITE 4711 00:19:1403 0 EOF")
	f.Add("1: -> POSIX  ADVISORY  WRITE 0 ff:ff:18446744073709551615 0 EOF")
	f.Add("pos:\t0\nflags:\t0100002\nmnt_id:\t29\nino:\t7\n")
	f.Fuzz(func(t *testing.T, text string) {
		if l, ok := parseLock(text); ok && l.pid < 0 {
			t.Errorf("%q is %+v", text, l)
		}
		if _, mnt, ok := parseFDInfo(text); ok && mnt < 0 {
			t.Errorf("%q is of the mount %d", text, mnt)
		}
	})
}

func TestJournalLines(t *testing.T) {
	rec := record{
		Version: journalVersion, ID: "x", Boot: "b", PIDNS: 3, Guard: process{7, 8}, Requester: process{9, 10},
		Targets: []Target{Machine(), Cgroup("/a")}, Since: time.Unix(5, 0).UTC(), Until: 77,
	}
	entries := []entry{
		{kind: entryPID, pid: 12, start: 1 << 63},
		{kind: entryCgroup, inode: 1 << 63, path: "/with \"quotes\"\nand lines"},
	}
	var text bytes.Buffer
	text.Write(must(marshalRecord(&rec)))
	for _, e := range entries {
		text.Write(e.append(nil))
	}
	text.Write(entry{kind: entryUntil, until: 99}.append(nil))
	text.WriteString("pid 13 14") // not finished
	got, err := readRecord(&text)
	if err != nil {
		t.Fatal(err)
	}
	rec.entries, rec.Until = entries, 99
	if !reflect.DeepEqual(got, rec) {
		t.Errorf("%+v\nwant %+v", got, rec)
	}
	for _, damaged := range []string{"", "{}\n", "pid 1 2\n", string(must(marshalRecord(&rec))) + "moon 3\npid 1 2\n"} {
		got, err := readRecord(strings.NewReader(damaged))
		if !errors.Is(err, errJournal) {
			t.Errorf("%q: %v", damaged, err)
		}
		if strings.Contains(damaged, "moon") && len(got.entries) != 1 {
			t.Errorf("what could be understood of %q is %+v", damaged, got.entries)
		}
	}
}

func FuzzReadRecord(f *testing.F) {
	rec := record{Version: journalVersion, ID: "x", Boot: "b", Guard: process{7, 8}, Requester: process{9, 10}, Lease: time.Second}
	f.Add(append(must(marshalRecord(&rec)), "pid 1 2\ncgroup 3 \"/a\"\nuntil 5\n"...))
	f.Fuzz(func(t *testing.T, text []byte) {
		rec, err := readRecord(bytes.NewReader(text))
		if err != nil {
			return
		}
		out := must(marshalRecord(&rec))
		for _, e := range rec.entries {
			out = e.append(out)
		}
		again, err := readRecord(bytes.NewReader(out))
		if err != nil || len(again.entries) != len(rec.entries) {
			t.Errorf("%q: %v", out, err)
		}
	})
}

func FuzzMessage(f *testing.F) {
	f.Add([]byte(`{"op":"freeze","order":{"targets":[{"kind":"machine"},{"kind":"tree","pids":[3]}],"timeout":5}}`))
	f.Add([]byte(`{"op":"extend","timeout":-1}`))
	f.Add([]byte(`{"op":"prepare","order":{"targets":[{"kind":"machine"}],"timeout":-1,"lease":4000000000}}`))
	f.Add([]byte(`{"op":"renew"}`))
	f.Fuzz(func(t *testing.T, packet []byte) {
		m, err := parseMessage(packet)
		if err == nil && m.Op == opFreeze && (len(m.Order.Targets) == 0 || len(m.Order.Targets) > maxTargets ||
			m.Order.Lease < 0 || m.Order.Lease > maxLease) {
			t.Errorf("%+v", m.Order)
		}
	})
}

func TestGenerations(t *testing.T) {
	// 5 and 6 are parents of each other: the table is not of one instant.
	var fresh []*member
	for pid, parent := range []int32{1: 9, 2: 1, 3: 2, 4: 1, 5: 6, 6: 5} {
		if pid > 0 {
			fresh = append(fresh, &member{pid: int32(pid), parent: parent})
		}
	}
	at := map[int32]int{}
	n := 0
	for depth, level := range generations(fresh) {
		for _, m := range level {
			at[m.pid] = depth
			n++
		}
	}
	if n != 6 || !(at[1] < at[2] && at[2] < at[3] && at[1] < at[4]) {
		t.Errorf("%v", at)
	}
}

// FuzzExecutor reads whatever an executor is given.
func FuzzExecutor(f *testing.F) {
	f.Add([]byte(`{"targets":[{"kind":"tree","pids":[1]}],"partial":true,"patience_ms":5}`))
	f.Add([]byte(`{"mounts":["/a","/b"]}`))
	f.Add([]byte("{\"boot\":\"x\",\"order\":7}\n\"/hooks/1\"\n"))
	f.Add([]byte("{\"boot\":\"x\",\"order\":7}\n\"/hooks/1\"\ngroup 17\ngroup 0\n\"/hooks/2\"\ngroup 18\n"))
	x := &Executor{config: ExecutorConfig{Procs: true, FS: true}}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, action := range []string{ActionFreeze, ActionFSFreeze} {
			o, err := x.read(action, text)
			if err == nil && o.Validate() != nil || err != nil && !errors.Is(err, ErrOrder) {
				t.Errorf("%s: %+v, %v", action, o, err)
			}
		}
		if r, err := readHookRun(bytes.NewReader(text)); err == nil && (len(r.begun) > maxHooks || r.group < 0 || r.size > int64(len(text))) {
			t.Errorf("%+v", r)
		}
	})
}

func TestRecoveredString(t *testing.T) {
	for want, r := range map[string]Recovered{
		"nothing":                     {},
		"1 process":                   {Processes: 1},
		"2 file systems":              {FileSystems: 2},
		"5 processes, 1 cgroup":       {Processes: 5, Cgroups: 1},
		"2 cgroups, 1 file system":    {Cgroups: 2, FileSystems: 1},
		"3 processes, 3 file systems": {Processes: 3, FileSystems: 3},
	} {
		if got := r.String(); got != want {
			t.Errorf("%+v is %q, want %q", r, got, want)
		}
	}
}
