package history

import (
	"path/filepath"
	"reflect"
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
	err := WriteEDN(&b, []Op{
		{Index: 0, Time: 5, Process: 3, Type: OK, F: Acquire, Locks: []string{"l1"}, Fence: 42},
		{Index: 1, Time: 6, Process: Nemesis, Type: Info, F: "kill", Value: `n1 "x"`},
		{Index: 2, Time: 7, Process: 1, Type: OK, F: Read, Locks: []string{"l1"}, Owner: "u"},
		{Index: 3, Time: 8, Process: 1, Type: Invoke, F: Write},
	})
	want := `{:index 0, :time 5, :process 3, :type :ok, :f :acquire, :value ["l1" 42]}
{:index 1, :time 6, :process :nemesis, :type :info, :f :kill, :value "n1 \"x\""}
{:index 2, :time 7, :process 1, :type :ok, :f :read, :value "u"}
{:index 3, :time 8, :process 1, :type :invoke, :f :write, :value nil}
`
	if b.String() != want || err != nil {
		t.Errorf("got %s, %v", b.String(), err)
	}
}
