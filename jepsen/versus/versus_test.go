package versus

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	for _, c := range []struct {
		stat   string
		state  byte
		parent int
		ok     bool
	}{
		{"42 (sleep) S 7 42 42 0", 'S', 7, true},
		{"42 (a) T (b) Z 9) T 8 1 1", 'T', 8, true},
		{"42 (gone) Z 1", 'Z', 1, true},
		{"42 (cut", 0, 0, false},
		{"42 (cut) S", 0, 0, false},
		{"42 (odd) S x 1", 'S', 0, false},
		{"", 0, 0, false},
	} {
		state, parent, ok := parseStat([]byte(c.stat))
		if state != c.state || parent != c.parent || ok != c.ok {
			t.Errorf("%q: %c %d %v, want %c %d %v", c.stat, state, parent, ok, c.state, c.parent, c.ok)
		}
	}
}

func TestFamilyIsTheProcessAndItsDescendants(t *testing.T) {
	parents := map[int]int{0: 0, 1: 0, 10: 1, 11: 10, 12: 10, 13: 12, 9: 11, 20: 1, 21: 20}
	for root, want := range map[int][]int{10: {10, 11, 12, 9, 13}, 21: {21}, 99: {99}} {
		if got := descend(root, parents); !slices.Equal(got, want) {
			t.Errorf("family of %d: %v, want %v", root, got, want)
		}
	}
}

func TestWaitersAreCounted(t *testing.T) {
	lockerd := `{"holds":[{"locks":["a"]}],"waiters":[{"locks":["a"]},{"locks":["b"]},{"locks":["c","a"]}]}`
	if n, err := lockerdWaiters([]byte(lockerd), "a"); n != 2 || err != nil {
		t.Errorf("lockerd: %d, %v", n, err)
	}
	for _, c := range []struct {
		answer string
		want   int
		ok     bool
	}{
		{`{"header":{"revision":"1"}}`, 0, true}, // etcd leaves a 0 out
		{`{"count":"1"}`, 0, true},               // the holder
		{`{"count":"3"}`, 2, true},
		{`{"count":"many"}`, 0, false},
		{`{`, 0, false},
	} {
		if n, err := etcdWaiters([]byte(c.answer)); n != c.want || (err == nil) != c.ok {
			t.Errorf("etcd says %s: %d, %v, want %d", c.answer, n, err, c.want)
		}
	}
	// "lock/" up to "lock0", in base 64: what is under the name "lock" and nothing else.
	if got := etcdRange("lock"); got != `{"key":"bG9jay8=","range_end":"bG9jazA=","count_only":true}` {
		t.Error(got)
	}
}

func TestLinesOfCommands(t *testing.T) {
	for _, c := range []struct {
		line string
		ok   bool
	}{
		{"stamp 123 true\n", true},
		{"stamp 123 true", true},
		{"stamp 123\n", false},
		{"stamp 123 true 5\n", false},
		{"stamp x true\n", false},
		{"stamped 123 true\n", false},
		{"", false},
	} {
		var at int64
		var alive bool
		if err := parseLine(c.line, "stamp", &at, &alive); (err == nil) != c.ok || err == nil && (at != 123 || !alive) {
			t.Errorf("%q: %d %v, %v", c.line, at, alive, err)
		}
	}
}

func TestSpread(t *testing.T) {
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(100-i)*time.Millisecond)
	}
	for _, c := range []struct {
		name string
		all  []time.Duration
		want Spread
	}{
		{"none", nil, Spread{}},
		{"one", []time.Duration{1500 * time.Microsecond}, Spread{Runs: 1, P50: 1.5, P99: 1.5, Max: 1.5}},
		{"two", []time.Duration{2 * time.Millisecond, time.Millisecond}, Spread{Runs: 2, P50: 1, P99: 2, Max: 2}},
		{"a hundred", hundred, Spread{Runs: 100, P50: 50, P99: 99, Max: 100}},
	} {
		if got := spread(c.all); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestPausesAreSpreadOverTheRun(t *testing.T) {
	for _, c := range []struct {
		reads, pauses int
		want          []int
	}{
		{160, 0, nil},
		{160, 1, []int{81}},
		{160, 3, []int{41, 81, 121}},
		{4, 4, []int{1, 2, 3, 4}},
	} {
		if got := slices.Sorted(maps.Keys(points(c.reads, c.pauses))); !slices.Equal(got, c.want) {
			t.Errorf("%d of %d: %v, want %v", c.pauses, c.reads, got, c.want)
		}
	}
}

func column(title string, control, paused Count) CounterColumn {
	return CounterColumn{Title: title, Control: control, Paused: &paused}
}

func TestCounterVerdict(t *testing.T) {
	all, stopped := Count{Increments: 40, Number: 40}, Count{Increments: 40, Number: 40, Pauses: 2}
	lost := Count{Increments: 40, Number: 30, Lost: 10, Pauses: 2}
	control := column("no lock", lost, lost)
	for _, c := range []struct {
		name    string
		columns []CounterColumn
		want    Verdict
		says    string
	}{
		{"nothing lost", []CounterColumn{control, column("lockersh", all, stopped)}, Pass, "lost nothing"},
		{"etcd's losses are not ours", []CounterColumn{control, column("lockersh", all, stopped), column("etcdctl lock --ttl 2", lost, lost)}, Pass, "lost nothing"},
		{"nor is a lease's price", []CounterColumn{control, column("lockersh", all, stopped), column("lockersh --lease 2s", lost, lost)}, Pass, "lost nothing"},
		{"lost in a pause", []CounterColumn{control, column("lockersh", all, lost)}, Fail, "lost 10"},
		{"lost without pauses", []CounterColumn{control, column("lockersh", lost, stopped)}, Fail, "lost 10"},
		{"more than written", []CounterColumn{control, column("lockersh", Count{Lost: -1}, stopped)}, Undecided, "more"},
		{"the control lost nothing", []CounterColumn{column("no lock", all, stopped), column("lockersh", all, stopped)}, Undecided, "without a lock"},
		{"commands never ran", []CounterColumn{control, column("lockersh", Count{Increments: 39, Number: 39, Failed: 1, Why: "no luck"}, stopped)}, Undecided, "39 of 40 increments: no luck"},
		{"nobody was stopped", []CounterColumn{control, column("lockersh", all, all)}, Undecided, "pauses"},
		{"not tested", []CounterColumn{control}, Undecided, "not tested"},
	} {
		r := CounterReport{Counter: Counter{Processes: 8, Times: 5, Pauses: 2}, Columns: c.columns}
		if got, why := r.Verdict(); got != c.want || !strings.Contains(why, c.says) {
			t.Errorf("%s: %v %q, want %v %q", c.name, got, why, c.want, c.says)
		}
	}
}

func TestDeathVerdict(t *testing.T) {
	good, bad := Spread{Runs: 3}, Spread{Runs: 3, Beside: 1}
	for _, c := range []struct {
		name string
		rows []Spread
		want Verdict
	}{
		{"alone", []Spread{good, good, good}, Pass},
		{"two at a time", []Spread{good, bad, good}, Fail},
		{"not all", []Spread{good}, Undecided},
	} {
		r := DeathReport{Systems: []DeathSystem{{Title: "etcdctl lock --ttl 2", Rows: []Spread{bad, bad, bad}}, {Title: "lockersh", Rows: c.rows}}}
		if got, why := r.Verdict(); got != c.want {
			t.Errorf("%s: %v %q, want %v", c.name, got, why, c.want)
		}
	}
}

func TestTablesAreAligned(t *testing.T) {
	control := Count{Increments: 40, Number: 17, Lost: 23, Seconds: 0.51}
	full := Count{Increments: 40, Number: 40, Seconds: 2.84, Pauses: 2}
	counter := CounterReport{
		Counter: Counter{Processes: 8, Times: 5, Pauses: 2, Pause: 6 * time.Second},
		Columns: []CounterColumn{
			column("no lock", control, control), column("lockersh", full, full),
			{Title: "etcdctl lock --ttl 2", Missing: notInstalled},
		},
	}
	var out bytes.Buffer
	if err := counter.Print(&out); err != nil {
		t.Fatal(err)
	}
	const wantCounter = `
                           no lock  lockersh  etcdctl lock --ttl 2
holders stopped: none
  increments                    40        40         not installed
  number in the file            17        40         not installed
  lost updates                  23         0         not installed
  commands failed                0         0         not installed
  seconds                      0.5       2.8         not installed
holders stopped for 6s: 2
  increments                    40        40         not installed
`
	if !strings.Contains(out.String(), wantCounter) {
		t.Errorf("got\n%s", out.String())
	}
	out.Reset()
	death := DeathReport{Death: Death{Runs: 3}, Systems: []DeathSystem{
		{Title: "lockersh", Rows: []Spread{{Runs: 3, P50: 20, P99: 30.14, Max: 30.14}, {Runs: 3, P50: 20, P99: 30, Max: 30}, {Runs: 3, P50: 20, P99: 30, Max: 30}}},
		{Title: "etcdctl lock --ttl 2", Rows: []Spread{{Runs: 3, P50: 2000, P99: 2400, Max: 2400}, {Runs: 3, P50: 2000, P99: 2400, Max: 2400, Beside: 3}, {Runs: 3, P50: 10, P99: 30, Max: 30}}},
	}}
	if err := death.Print(&out); err != nil {
		t.Fatal(err)
	}
	const wantDeath = `
killed                   locked by             p50 ms  p99 ms  max ms  beside the command before
command and lock client  lockersh                20.0    30.1    30.1                     0 of 3
command and lock client  etcdctl lock --ttl 2  2000.0  2400.0  2400.0                     0 of 3
lock client alone        lockersh                20.0    30.0    30.0                     0 of 3
lock client alone        etcdctl lock --ttl 2  2000.0  2400.0  2400.0                     3 of 3
`
	if !strings.Contains(out.String(), wantDeath) || !strings.Contains(out.String(), "100.0 times as long") {
		t.Errorf("got\n%s", out.String())
	}
}
