package report

import (
	"bytes"
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/lockerd/lockerd/jepsen/run"
)

// nodeColours tell servers apart; there are nine at most.
var nodeColours = []string{"#2a7ab9", "#c0392b", "#1a7f37", "#e08a1e", "#7d3c98", "#008b8b", "#8b4513", "#c71585", "#555555"}

// leaders draws who led when, in which term: a row for each server that ever did.
func (v *view) leaders(b *bytes.Buffer) {
	var names []string
	for _, l := range v.led {
		name, _, _ := strings.Cut(l.name, " ")
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	const row = 22
	v.begin(b, 30+row*max(1, len(names))+bottom, "who led, in which term")
	for i, name := range names {
		fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", left-4, 50+row*i, html.EscapeString(name))
	}
	for _, l := range v.led {
		name, term, _ := strings.Cut(l.name, " ")
		i := slices.Index(names, name)
		fmt.Fprintf(b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s" fill-opacity="0.6"><title>%s led in term %s, %v to %v</title></rect>`+"\n",
			v.x(l.from), 36+row*i, max(1, v.x(l.to)-v.x(l.from)), row-4, nodeColours[i%len(nodeColours)], html.EscapeString(name), html.EscapeString(term), l.from, l.to)
		fmt.Fprintf(b, `<text x="%.1f" y="%d">%s</text>`+"\n", v.x(l.from)+2, 50+row*i, html.EscapeString(term))
	}
	b.WriteString("</svg>\n")
}

// Ranges of the picture of clocks.
const (
	farthest = 366 * 24 * time.Hour // that a wall clock is moved
	fastest  = 8.0                  // that a clock may seem to run
)

// clocks draws how far each server's wall clock was ahead, on a scale that is logarithmic
// either way from 10 ms on, and below it how fast its monotonic clock ran.
func (v *view) clocks(b *bytes.Buffer, samples []run.ClockSample) {
	const top, middle, foot = 34, 250, 400
	v.begin(b, foot+bottom, "wall clocks: how far ahead of the machine's; below: how fast the monotonic clocks ran")
	wall := func(d time.Duration) float64 {
		decades := func(d time.Duration) float64 { return math.Log10(1 + float64(d)/float64(10*time.Millisecond)) }
		share := decades(min(d.Abs(), farthest)) / decades(farthest)
		return float64(top+middle)/2 - math.Copysign(share, float64(d))*float64(middle-top)/2
	}
	pace := func(r float64) float64 {
		share := math.Log2(min(max(r, 1/fastest), fastest)) / math.Log2(fastest)
		return float64(middle+foot)/2 + 8 - share*float64(foot-middle-20)/2
	}
	tick := func(y float64, says string) {
		fmt.Fprintf(b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n", left, width-10, y, y, left-4, y+4, says)
	}
	tick(wall(0), "0")
	for says, d := range map[string]time.Duration{"1s": time.Second, "1min": time.Minute, "1h": time.Hour, "1d": 24 * time.Hour, "1y": 365 * 24 * time.Hour} {
		tick(wall(d), "+"+says)
		tick(wall(-d), "-"+says)
	}
	for _, r := range []float64{0.25, 1, 4} {
		tick(pace(r), fmt.Sprintf("x%g", r))
	}
	by := map[string][]run.ClockSample{}
	var names []string
	for _, s := range samples {
		if by[s.Node] == nil {
			names = append(names, s.Node)
		}
		by[s.Node] = append(by[s.Node], s)
	}
	slices.Sort(names)
	for i, name := range names {
		c := nodeColours[i%len(nodeColours)]
		for _, y := range []func(run.ClockSample) float64{
			func(s run.ClockSample) float64 { return wall(s.Offset) },
			func(s run.ClockSample) float64 { return pace(s.Rate) },
		} {
			fmt.Fprintf(b, `<polyline fill="none" stroke="%s" stroke-opacity="0.8" points="`, c)
			for _, s := range by[name] {
				fmt.Fprintf(b, "%.1f,%.1f ", v.x(s.Time), y(s))
			}
			fmt.Fprintf(b, `"><title>%s</title></polyline>`+"\n", html.EscapeString(name))
		}
		fmt.Fprintf(b, `<text x="%d" y="14" fill="%s">%s</text>`+"\n", width-40*(len(names)-i), c, html.EscapeString(name))
	}
	b.WriteString("</svg>\n")
}
