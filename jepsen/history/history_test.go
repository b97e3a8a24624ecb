package history

import (
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestRecorderStampsInOrder(t *testing.T) {
	r := NewRecorder()
	for i := range 3 {
		r.Add(Op{Process: i, Type: Invoke, F: Acquire})
	}
	ops := r.Ops()
	for i, op := range ops {
		if op.Index != i || i > 0 && op.Time < ops[i-1].Time {
			t.Errorf("op %d: %+v", i, op)
		}
	}
}

func TestPairs(t *testing.T) {
	pairs := Pairs([]Op{
		{Process: 1, Type: Invoke, F: Acquire, Time: 1},
		{Process: Nemesis, Type: Invoke, F: "kill", Time: 2},
		{Process: 2, Type: Invoke, F: Read, Time: 3},
		{Process: 1, Type: Info, F: Queued, Time: 4},
		{Process: 1, Type: OK, F: Acquire, Time: 5},
		{Process: 1, Type: Invoke, F: Release, Time: 6},
		{Process: 1, Type: Info, F: Lost, Time: 7},
		{Process: 1, Type: Fail, F: Release, Time: 8},
	})
	type row struct {
		f    string
		t    Type
		from time.Duration
		to   time.Duration
	}
	var got []row
	for _, p := range pairs {
		got = append(got, row{p.Call.F, p.Type(), p.Call.Time, p.End()})
	}
	want := []row{{Acquire, OK, 1, 5}, {Read, Info, 3, Forever}, {Release, Fail, 6, 8}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestLinesAreReadBack(t *testing.T) {
	ops := []Op{{Index: 1, Process: 2, Type: OK, F: Acquire, Locks: []string{"a", "b"}, Fence: 7, Limit: time.Second}, {F: Read}}
	path := filepath.Join(t.TempDir(), "h.jsonl")
	if err := WriteLines(path, ops); err != nil {
		t.Fatal(err)
	}
	got, err := ReadFile[Op](path)
	if err != nil || !reflect.DeepEqual(got, ops) {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := ReadLines[Op](strings.NewReader("{}\nno\n")); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("a bad line: %v", err)
	}
}

func TestEDN(t *testing.T) {
	var b strings.Builder
	l1 := []string{"l1"}
	err := WriteEDN(&b, []Op{
		{Index: 0, Time: 5, Process: 3, Type: Invoke, F: Acquire, Locks: l1, Owner: "u3"},
		{Index: 1, Time: 6, Process: 3, Type: Info, F: Queued, Locks: l1, Owner: "u3"},
		{Index: 2, Time: 7, Process: 3, Type: OK, F: Acquire, Locks: l1, Owner: "u3", Fence: 42},
		{Index: 3, Time: 8, Process: Nemesis, Type: Info, F: "kill", Value: `n1 "x"`},
		{Index: 4, Time: 9, Process: 1, Type: Invoke, F: Read, Locks: l1},
		{Index: 5, Time: 10, Process: 1, Type: OK, F: Read, Locks: l1, Owner: "u3"},
		{Index: 6, Time: 11, Process: 1, Type: Invoke, F: Read, Locks: l1},
		{Index: 7, Time: 12, Process: 1, Type: OK, F: Read, Locks: l1},
		{Index: 8, Time: 13, Process: 1, Type: Invoke, F: Read, Locks: l1},
		{Index: 9, Time: 14, Process: 1, Type: Info, F: Read, Locks: l1, Error: "timeout"},
		{Index: 10, Time: 15, Process: 4, Type: Fail, F: Acquire, Locks: []string{"l1", "l2"}, Owner: "u4", Error: Busy},
		{Index: 11, Time: 16, Process: 5, Type: OK, F: Write, Owner: "u5", Fence: 43, Value: "7"},
	})
	want := `{:index 0, :time 5, :process 3, :type :invoke, :f :acquire, :value ["l1" nil], :owner "u3"}
{:index 1, :time 6, :process :note, :type :info, :f :queued, :value ["l1" nil], :of 3, :owner "u3"}
{:index 2, :time 7, :process 3, :type :ok, :f :acquire, :value ["l1" 42], :owner "u3"}
{:index 3, :time 8, :process :nemesis, :type :info, :f :kill, :value "n1 \"x\""}
{:index 4, :time 9, :process 1, :type :invoke, :f :read, :value ["l1" nil]}
{:index 5, :time 10, :process 1, :type :ok, :f :read, :value ["l1" "u3"]}
{:index 6, :time 11, :process 1, :type :invoke, :f :read, :value ["l1" nil]}
{:index 7, :time 12, :process 1, :type :ok, :f :read, :value ["l1" nil]}
{:index 8, :time 13, :process 1, :type :invoke, :f :read, :value ["l1" nil]}
{:index 9, :time 14, :process 1, :type :info, :f :read, :value ["l1" nil], :error "timeout"}
{:index 10, :time 15, :process 4, :type :fail, :f :acquire, :value [["l1" "l2"] nil], :owner "u4", :error "busy"}
{:index 11, :time 16, :process 5, :type :ok, :f :write, :value [7 43], :owner "u5"}
`
	if b.String() != want || err != nil {
		t.Errorf("got %s, %v", b.String(), err)
	}
}

// Knossos wants each line of a numbered process to be a call, or the return of the one
// that is open, and no call after an unknown outcome.
func TestEDNIsPaired(t *testing.T) {
	paths, err := filepath.Glob("../regressions/*/history.jsonl")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no stored histories: %v", err)
	}
	line := regexp.MustCompile(`^\{:index \d+, :time \d+, :process (\d+), :type :(\w+), :f :(\w+), :value .*\}$`)
	other := regexp.MustCompile(`^\{:index \d+, :time \d+, :process :(note|nemesis), `)
	for _, path := range paths {
		ops, err := ReadFile[Op](path)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		if err := WriteEDN(&b, ops); err != nil {
			t.Fatal(err)
		}
		open, over := map[string]string{}, map[string]bool{}
		for l := range strings.Lines(b.String()) {
			l = strings.TrimSpace(l)
			m := line.FindStringSubmatch(l)
			switch {
			case m == nil && other.MatchString(l):
			case m == nil:
				t.Errorf("%s: %s", path, l)
			case over[m[1]]:
				t.Errorf("%s: process %s goes on after an unknown outcome: %s", path, m[1], l)
			case m[2] == "invoke":
				if open[m[1]] != "" {
					t.Errorf("%s: a second call of process %s: %s", path, m[1], l)
				}
				open[m[1]] = m[3]
			case open[m[1]] != m[3]:
				t.Errorf("%s: process %s returns from %s, and had called %q: %s", path, m[1], m[3], open[m[1]], l)
			default:
				open[m[1]], over[m[1]] = "", m[2] == "info"
			}
		}
	}
}
