package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func ms(list ...int) samples {
	var s samples
	for _, v := range list {
		s = append(s, time.Duration(v)*time.Millisecond)
	}
	return s
}

func TestSpread(t *testing.T) {
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = 100 - i
	}
	for _, c := range []struct {
		name            string
		in              samples
		p50, p99, worst int
	}{
		{"none", nil, 0, 0, 0},
		{"one", ms(7), 7, 7, 7},
		{"two", ms(9, 1), 1, 9, 9},
		{"three, unsorted", ms(5, 1, 3), 3, 5, 5},
		{"a hundred, downwards", ms(hundred...), 50, 99, 100},
		{"one outlier", ms(1, 1, 1, 1, 1, 1, 1, 1, 1, 900), 1, 900, 900},
	} {
		got := c.in.spread()
		want := spread{len(c.in), millis(ms(c.p50)[0]), millis(ms(c.p99)[0]), millis(ms(c.worst)[0])}
		if got != want {
			t.Errorf("%s: %+v, want %+v", c.name, got, want)
		}
	}
}

func TestRate(t *testing.T) {
	for _, c := range []struct {
		n    int
		in   time.Duration
		want float64
	}{
		{0, time.Second, 0},
		{5, 0, 0},
		{1, 3 * time.Second, 0.3},
		{99, 2 * time.Second, 49.5},
		{3001, 2 * time.Second, 1501},
	} {
		if got := rate(c.n, c.in); got != c.want {
			t.Errorf("%d in %v: %v, want %v", c.n, c.in, got, c.want)
		}
	}
}

func TestWindowCountsWhatEndsInIt(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	w := window{at(10), at(20)}
	var s samples
	s = w.count(s, at(8), at(9))   // warm-up
	s = w.count(s, at(9), at(12))  // 3 s
	s = w.count(s, at(19), at(20)) // 1 s
	s = w.count(s, at(19), at(21)) // too late
	if got := s.spread(); len(s) != 2 || time.Duration(got.Worst) != 3*time.Second {
		t.Errorf("%v", s)
	}
}

func TestSwaps(t *testing.T) {
	w := func(asked, queued int) *waiter {
		return &waiter{asked: time.Unix(int64(asked), 0), queued: time.Unix(int64(queued), 0)}
	}
	a, b, c := w(1, 3), w(2, 4), w(5, 6)
	for _, tt := range []struct {
		name  string
		order []*waiter
		want  int
	}{
		{"in order", []*waiter{a, b, c}, 0},
		{"two that overlap", []*waiter{b, a, c}, 0},
		{"the last one first", []*waiter{c, a, b}, 2},
		{"nobody", nil, 0},
	} {
		if got := swaps(tt.order); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestFailoverGoals(t *testing.T) {
	good, slow, bad := ms(10, 20, 30).spread(), ms(10, 200, 300).spread(), ms(10, 20, 2500).spread()
	for _, c := range []struct {
		name string
		r    failoverResult
		want []string
	}{
		{"all met", failoverResult{Attached: good, Walking: good}, nil},
		{"median", failoverResult{Attached: slow, Walking: good}, []string{"half of the attached clients took 200 ms, the goal is under 150ms"}},
		{"worst", failoverResult{Attached: good, Walking: bad}, []string{"the worst of the walking clients took 2500 ms, the goal is under 2s"}},
		{"a cut may take longer", failoverResult{Cut: true, Attached: bad, Walking: bad}, nil},
		{"but not so long", failoverResult{Cut: true, Attached: ms(4000).spread()}, []string{"the worst of the attached clients took 4000 ms, the goal is under 4s"}},
	} {
		if got := c.r.missed(); strings.Join(got, "\n") != strings.Join(c.want, "\n") {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	p := &program{}
	if err := p.judge([]string{"x"}); err == nil {
		t.Error("a missed goal was no error")
	}
	p.noGoals = true
	if err := p.judge([]string{"x"}); err != nil {
		t.Errorf("with --no-goals: %v", err)
	}
}

func TestDeathGoals(t *testing.T) {
	for _, c := range []struct {
		name string
		in   samples
		want []string
	}{
		{"both met", ms(1, 2, 99), nil},
		{"median", ms(1, 20, 30), []string{"half of the deaths took 20.0 ms, the goal is under 20ms"}},
		{"p99", ms(1, 2, 100), []string{"99% of the deaths took 100 ms, the goal is under 100ms"}},
	} {
		r := deathsResult{Death: c.in.spread()}
		if got := r.missed(); strings.Join(got, "\n") != strings.Join(c.want, "\n") {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestReport(t *testing.T) {
	r := &pairsResult{Servers: 3, Clients: 16, Proto: 1, Pipeline: 1, Seconds: 3, Rate: 1234, Pair: ms(1, 20, 300).spread()}
	var b bytes.Buffer
	p := &program{out: &b}
	if err := p.report(r); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimRight(b.String(), "\n"), "\n")
	if len(lines) != 2 || len(lines[0]) != len(lines[1]) {
		t.Errorf("not aligned:\n%s", b.String())
	}
	for _, want := range []string{"1234", "20.0", "300"} {
		if !strings.Contains(lines[1], want) {
			t.Errorf("no %s in %q", want, lines[1])
		}
	}
	b.Reset()
	p.json = true
	if err := p.report(r); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Rate float64 `json:"pairs_per_second"`
		Pair struct {
			P50 float64 `json:"p50_ms"`
		} `json:"pair"`
	}
	if err := json.Unmarshal(b.Bytes(), &got); err != nil || got.Rate != 1234 || got.Pair.P50 != 20 {
		t.Errorf("%s: %+v, %v", b.String(), got, err)
	}
}
