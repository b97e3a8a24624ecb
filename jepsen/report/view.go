package report

import (
	"bytes"
	"cmp"
	"fmt"
	"html"
	"math"
	"slices"
	"time"

	"github.com/lockerd/lockerd/jepsen/check"
	"github.com/lockerd/lockerd/jepsen/history"
)

// view is a history as the pictures need it.
type view struct {
	pairs  []history.Pair
	faults []band
	led    []band
	end    time.Duration
}

// band is a span of time with a name.
type band struct {
	from, to time.Duration
	name     string
}

func newView(in check.Input) *view {
	v := &view{pairs: history.Pairs(in.Ops)}
	if n := len(in.Ops); n > 0 {
		v.end = in.Ops[n-1].Time
	}
	fault, lead := -1, -1
	for _, op := range in.Ops {
		switch {
		case op.Process != history.Nemesis:
		case op.F == "leader":
			if lead >= 0 {
				v.led[lead].to = op.Time
			}
			lead = -1
			if op.Value != "" {
				v.led, lead = append(v.led, band{op.Time, v.end, op.Value}), len(v.led)
			}
		case op.Type == history.Invoke:
			v.faults, fault = append(v.faults, band{op.Time, v.end, op.F}), len(v.faults)
		case op.Type == history.Info && fault >= 0 && v.faults[fault].name == op.F:
			v.faults[fault].name = op.F + ": " + op.Value
		case op.Type == history.OK && fault >= 0:
			v.faults[fault].to = op.Time
		}
	}
	return v
}

// latency is how long the operations of one kind took.
type latency struct {
	F                   string
	N                   int
	P50, P95, P99, Most time.Duration
}

func (v *view) latencies() []latency {
	by := map[string][]time.Duration{}
	for _, p := range v.pairs {
		if p.Type() != history.Info {
			by[p.Call.F] = append(by[p.Call.F], p.Return.Time-p.Call.Time)
		}
	}
	var all []latency
	for f, d := range by {
		slices.Sort(d)
		at := func(q float64) time.Duration { return d[int(q*float64(len(d)-1))] }
		all = append(all, latency{f, len(d), at(0.5), at(0.95), at(0.99), at(1)})
	}
	slices.SortFunc(all, func(a, b latency) int { return cmp.Compare(a.F, b.F) })
	return all
}

// Sizes of pictures, in pixels.
const (
	width, height = 1100, 320
	left, bottom  = 60, 40
)

// Colours by outcome, and of faults.
var colour = map[history.Type]string{history.OK: "#2a7ab9", history.Fail: "#e08a1e", history.Info: "#c0392b"}

const (
	faultColour = "#f3d9d9"
	leadColour  = "#dfeaf3"
)

func (v *view) x(t time.Duration) float64 {
	return left + float64(width-left-10)*float64(t)/float64(max(v.end, 1))
}

// begin draws what all pictures over time have: axes, faults, leaders.
func (v *view) begin(b *bytes.Buffer, h int, title string) {
	fmt.Fprintf(b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n", width, h, width, h)
	fmt.Fprintf(b, `<rect width="%d" height="%d" fill="white"/><text x="%d" y="14" font-size="13">%s</text>`+"\n", width, h, left, html.EscapeString(title))
	for _, f := range v.faults {
		fmt.Fprintf(b, `<rect x="%.1f" y="20" width="%.1f" height="%d" fill="%s"><title>%s</title></rect>`+"\n", v.x(f.from), max(1, v.x(f.to)-v.x(f.from)), h-bottom-20, faultColour, html.EscapeString(f.name))
		kind, _, _ := cutName(f.name)
		fmt.Fprintf(b, `<text x="%.1f" y="30" fill="#a55" font-size="9">%s</text>`+"\n", v.x(f.from)+1, html.EscapeString(kind))
	}
	for _, l := range v.led {
		fmt.Fprintf(b, `<rect x="%.1f" y="%d" width="%.1f" height="9" fill="%s" stroke="white"><title>leader %s</title></rect>`+"\n", v.x(l.from), h-bottom+2, max(1, v.x(l.to)-v.x(l.from)), leadColour, html.EscapeString(l.name))
		fmt.Fprintf(b, `<text x="%.1f" y="%d" font-size="8">%s</text>`+"\n", v.x(l.from)+1, h-bottom+10, html.EscapeString(l.name))
	}
	step := niceStep(v.end)
	for t := time.Duration(0); t <= v.end; t += step {
		fmt.Fprintf(b, `<text x="%.1f" y="%d" text-anchor="middle">%gs</text>`+"\n", v.x(t), h-bottom+26, t.Seconds())
	}
}

func cutName(s string) (kind, rest string, ok bool) {
	for i := range len(s) {
		if s[i] == ':' {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

func niceStep(d time.Duration) time.Duration {
	for _, s := range []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute, 5 * time.Minute} {
		if d/s <= 15 {
			return s
		}
	}
	return time.Hour
}

// maxDots bounds the points of a picture.
const maxDots = 10_000

// latency draws each operation as a point: when it began, how long it took.
func (v *view) latency(b *bytes.Buffer) {
	v.begin(b, height, "latency by outcome (blue ok, orange fail, red unknown), faults shaded, leaders below")
	y := func(d time.Duration) float64 { // logarithmic, 0.1 ms to 100 s
		l := (math.Log10(max(float64(d), 1e5)) - 5) / 6
		return float64(height-bottom) - l*float64(height-bottom-20)
	}
	for _, d := range []time.Duration{time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond, time.Second, 10 * time.Second} {
		fmt.Fprintf(b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%v</text>`+"\n", left, width-10, y(d), y(d), left-4, y(d)+4, d)
	}
	every := len(v.pairs)/maxDots + 1
	for i, p := range v.pairs {
		t := p.Type()
		if i%every != 0 && t == history.OK {
			continue
		}
		took := v.end - p.Call.Time
		if p.Done {
			took = p.Return.Time - p.Call.Time
		}
		fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="1.3" fill="%s"/>`+"\n", v.x(p.Call.Time), y(took), colour[t])
	}
	b.WriteString("</svg>\n")
}

// rate draws how many operations ended in each part of the run.
func (v *view) rate(b *bytes.Buffer) {
	v.begin(b, height, "operations a second by outcome")
	step := max(v.end/200, 100*time.Millisecond)
	counts := map[history.Type][]float64{}
	most := 1.0
	for _, p := range v.pairs {
		if !p.Done {
			continue
		}
		t := p.Type()
		if counts[t] == nil {
			counts[t] = make([]float64, int(v.end/step)+1)
		}
		i := int(p.Return.Time / step)
		counts[t][i] += float64(time.Second) / float64(step)
		most = max(most, counts[t][i])
	}
	y := func(n float64) float64 { return float64(height-bottom) - n/most*float64(height-bottom-30) }
	for _, q := range []float64{0.5, 1} {
		fmt.Fprintf(b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%.0f</text>`+"\n", left, width-10, y(q*most), y(q*most), left-4, y(q*most)+4, q*most)
	}
	for _, t := range []history.Type{history.OK, history.Fail, history.Info} {
		if counts[t] == nil {
			continue
		}
		fmt.Fprintf(b, `<polyline fill="none" stroke="%s" points="`, colour[t])
		for i, n := range counts[t] {
			fmt.Fprintf(b, "%.1f,%.1f ", v.x(time.Duration(i)*step), y(n))
		}
		b.WriteString(`"/>` + "\n")
	}
	b.WriteString("</svg>\n")
}

// maxBars bounds the operations of a timeline, and aroundFault is how many of them
// come before the one at fault.
const (
	maxBars     = 3000
	aroundFault = 300
)

// timeline draws each operation as a bar in the row of its process: from the
// beginning, or around an operation at fault.
func (v *view) timeline(b *bytes.Buffer, fault int) {
	pairs := v.pairs
	if fault > 0 {
		i, _ := slices.BinarySearchFunc(pairs, fault, func(p history.Pair, n int) int { return cmp.Compare(p.Call.Index, n) })
		pairs = pairs[max(0, i-aroundFault):min(len(pairs), i+aroundFault/3)]
	} else if len(pairs) > maxBars {
		pairs = pairs[:maxBars]
	}
	if len(pairs) == 0 {
		v.begin(b, 100, "no operations")
		b.WriteString("</svg>\n")
		return
	}
	from, to := pairs[0].Call.Time, time.Duration(0)
	rows := map[int]int{}
	for _, p := range pairs {
		if _, ok := rows[p.Call.Process]; !ok {
			rows[p.Call.Process] = len(rows)
		}
		if p.Done {
			to = max(to, p.Return.Time)
		}
	}
	wide := max(width, len(pairs)*6)
	x := func(t time.Duration) float64 {
		return left + float64(wide-left-10)*float64(min(t, to)-from)/float64(max(to-from, 1))
	}
	h := 40 + 18*len(rows)
	fmt.Fprintf(b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="9">`+"\n", wide, h)
	for _, f := range v.faults {
		if f.to < from || f.from > to {
			continue
		}
		fmt.Fprintf(b, `<rect x="%.1f" y="0" width="%.1f" height="%d" fill="%s"><title>%s</title></rect><text x="%.1f" y="10" fill="#a55">%s</text>`+"\n",
			x(max(f.from, from)), x(f.to)-x(max(f.from, from)), h, faultColour, html.EscapeString(f.name), x(max(f.from, from)), html.EscapeString(f.name))
	}
	for process, row := range rows {
		fmt.Fprintf(b, `<text x="2" y="%d">%d</text>`+"\n", 32+18*row, process)
	}
	for _, p := range pairs {
		end := to
		if p.Done {
			end = p.Return.Time
		}
		stroke := "none"
		if fault > 0 && (p.Return.Index == fault || p.Call.Index == fault) {
			stroke = "red"
		}
		what := fmt.Sprintf("%s %v", p.Call.F, p.Call.Locks)
		if f := max(p.Return.Fence, p.Call.Fence); f > 0 {
			what += fmt.Sprintf(" #%d", f)
		}
		fmt.Fprintf(b, `<rect x="%.1f" y="%d" width="%.1f" height="14" fill="%s" fill-opacity="0.6" stroke="%s" stroke-width="2"><title>op %d: %s %s, %v to %v %s</title></rect>`+"\n",
			x(p.Call.Time), 20+18*rows[p.Call.Process], max(2, x(end)-x(p.Call.Time)), colour[p.Type()], stroke,
			p.Return.Index, html.EscapeString(what), p.Type(), p.Call.Time, end, html.EscapeString(p.Return.Error))
		fmt.Fprintf(b, `<text x="%.1f" y="%d">%s</text>`+"\n", x(p.Call.Time)+1, 31+18*rows[p.Call.Process], html.EscapeString(brief(p)))
	}
	b.WriteString("</svg>\n")
}

// brief is an operation in a few letters.
func brief(p history.Pair) string {
	f := max(p.Return.Fence, p.Call.Fence)
	switch {
	case f > 0:
		return fmt.Sprintf("%.1s%d", p.Call.F, f)
	case p.Call.F == history.Read:
		return "?" + p.Return.Owner
	}
	return fmt.Sprintf("%.1s", p.Call.F)
}
