package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(e.Name(), doneEnd) {
			text = nil
		}
		all = append(all, e.Name()+"="+string(text))
	}
	return strings.Join(all, " ")
}

// The files of these tests have their first names as contents.
func TestTakeOver(t *testing.T) {
	for _, tc := range []struct {
		name, before string
		done         uint64
		after, ours  string // ours are those to restore, in this order
		refused      bool
	}{
		{name: "nothing"},
		{name: "one", before: "a.5.7.ckpt", after: "a.9.1.ckpt=a.5.7.ckpt", ours: "9.1"},
		{name: "two of many", before: "a.5.7.ckpt a.5.10.ckpt a.5.9.ckpt a.4.99.ckpt", after: "a.9.1.ckpt=a.5.9.ckpt a.9.2.ckpt=a.5.10.ckpt", ours: "9.2 9.1"},
		{name: "a late one", before: "a.7.2.ckpt a.7.1.ckpt a.5.100.ckpt", after: "a.9.1.ckpt=a.7.1.ckpt a.9.2.ckpt=a.7.2.ckpt", ours: "9.2 9.1"},
		{name: "cut short before", before: "a.7.2.ckpt a.5.3.ckpt", after: "a.9.1.ckpt=a.5.3.ckpt a.9.2.ckpt=a.7.2.ckpt", ours: "9.2 9.1"},
		{name: "of an ended job", before: "a.5.7.ckpt a.5.8.ckpt", done: 5},
		{name: "some of it", before: "a.5.7.ckpt a.6.1.ckpt", done: 5, after: "a.9.1.ckpt=a.6.1.ckpt", ours: "9.1"},
		{
			name: "of others", before: "b.5.7.ckpt a.b.5.7.ckpt a.5.ckpt a.5.7.damaged a.x.1.ckpt .a.5.1.ckpt a.5.1.2.ckpt",
			after: ".a.5.1.ckpt=.a.5.1.ckpt a.5.1.2.ckpt=a.5.1.2.ckpt a.5.7.damaged=a.5.7.damaged a.5.ckpt=a.5.ckpt a.b.5.7.ckpt=a.b.5.7.ckpt a.x.1.ckpt=a.x.1.ckpt b.5.7.ckpt=b.5.7.ckpt",
		},
		{name: "of a later hold", before: "a.10.1.ckpt", after: "a.10.1.ckpt=a.10.1.ckpt", refused: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			for name := range strings.FieldsSeq(tc.before) {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s := series{dir: dir, name: "a", fence: 9}
			ours, err := s.takeOver(ending{Fence: tc.done})
			if (err != nil) != tc.refused {
				t.Fatal(err)
			}
			var got []string
			for _, id := range ours {
				got = append(got, strings.TrimSuffix(strings.TrimPrefix(filepath.Base(s.path(id, contextEnd)), "a."), contextEnd))
			}
			if strings.Join(got, " ") != tc.ours {
				t.Errorf("to restore: %q", got)
			}
			if got := names(t, dir); got != tc.after {
				t.Errorf("files: %s", got)
			}
			if next := s.next(); !tc.refused && slices.Contains(got, filepath.Base(next)) {
				t.Errorf("the next is %s", next)
			}
		})
	}
}

func TestFinish(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a.9.1.ckpt", "a.7.1.damaged", "a.5.3.ckpt", "b.9.1.ckpt"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	replaced := series{dir: dir, name: "a", fence: 7}
	if err := replaced.finish(0); err == nil {
		t.Error("one that has been replaced has ended the job")
	}
	if e, err := replaced.lastEnding(); err != nil || e.Fence != 0 {
		t.Errorf("%+v, %v", e, err)
	}
	s := series{dir: dir, name: "a", fence: 9}
	if err := s.finish(3); err != nil {
		t.Fatal(err)
	}
	if e, err := s.lastEnding(); err != nil || e.Fence != 9 || e.Status != 3 {
		t.Errorf("%+v, %v", e, err)
	}
	if got := names(t, dir); got != "a.done= b.9.1.ckpt=b.9.1.ckpt" {
		t.Errorf("files: %s", got)
	}
	for _, damaged := range []string{"", "{", "{}", `{"fence": 9, "status": 256}`, `{"fence": 9, "status": -1}`, strings.Repeat(" ", maxEnding) + "{}"} {
		if err := os.WriteFile(filepath.Join(dir, "a.done"), []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.lastEnding(); err == nil {
			t.Errorf("%.10q says how it has ended", damaged)
		}
	}
}

func TestSeriesName(t *testing.T) {
	for lock, want := range map[string]string{
		"job-1_A": "job-1_A", "a.b": "a%2Eb", "a/b": "a%2Fb", "%": "%25", ".": "%2E", "\xff": "%FF", strings.Repeat("/", 61): "",
	} {
		got, err := seriesName(lock)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%q: %q, %v", lock, got, err)
		}
	}
}

func FuzzEnding(f *testing.F) {
	f.Add([]byte(`{"fence": 9, "status": 3, "host": "h", "time": "2020-01-02T03:04:05Z"}`))
	f.Add([]byte(`{"fence": 18446744073709551615, "status": 0}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		e, err := parseEnding(text)
		if err != nil {
			if e != (ending{}) {
				t.Errorf("%v, and it says %+v", err, e)
			}
			return
		}
		if e.Fence == 0 || e.Status < 0 || e.Status > maxStatus {
			t.Errorf("it says %+v", e)
		}
		again, err := json.Marshal(e)
		if err != nil {
			return // a time that can be read and not written
		}
		if b, err := parseEnding(again); err != nil || b.Fence != e.Fence || b.Status != e.Status || b.Host != e.Host || !b.Time.Equal(e.Time) {
			t.Errorf("%+v is read again as %+v, %v", e, b, err)
		}
	})
}

func FuzzContextName(f *testing.F) {
	f.Add("a.5.7.ckpt")
	f.Add("a.18446744073709551615.0.ckpt")
	f.Add("a.05.7.ckpt")
	f.Add("a.b.5.7.ckpt")
	s := &series{dir: "/d", name: "a"}
	f.Fuzz(func(t *testing.T, file string) {
		if id, ok := s.parse(file, contextEnd); ok && filepath.Base(s.path(id, contextEnd)) != file {
			t.Errorf("%q is %+v", file, id)
		}
	})
}
