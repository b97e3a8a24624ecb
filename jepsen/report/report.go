package report

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"os"
	"path/filepath"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/lockerd/lockerd/jepsen/check"
	"github.com/lockerd/lockerd/jepsen/run"
)

// Names of the files of a report.
const (
	Index         = "index.html"
	latencyFile   = "latency.svg"
	rateFile      = "rate.svg"
	timelineFile  = "timeline.svg"
	leaderFile    = "leader.svg"
	clockFile     = "clock.svg"
	porcupineFile = "porcupine.html"
)

//go:embed page.html
var page embed.FS

var tmpl = template.Must(template.New("page.html").Funcs(template.FuncMap{
	"ms": func(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/1e6) },
}).ParseFS(page, "page.html"))

// Write makes the page of a run in its directory, with its pictures.
func Write(dir string, c run.Config, sum run.Summary, in check.Input, results []check.Result) error {
	clocks, err := run.LoadClocks(dir)
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	h := newView(in)
	verdict := check.Overall(results)
	data := struct {
		Config    run.Config
		Summary   run.Summary
		Verdict   check.Verdict
		Results   []check.Result
		Latencies []latency
		Clocks    bool
		Porcupine string
	}{Clocks: len(clocks) > 0, Config: c, Summary: sum, Verdict: verdict, Results: results, Latencies: h.latencies()}
	if failedModel(results) {
		if m, info, ok := check.Explain(in); ok {
			if err := porcupine.VisualizePath(m, info, filepath.Join(dir, porcupineFile)); err != nil {
				return fmt.Errorf("write the report: %w", err)
			}
			data.Porcupine = porcupineFile
		}
	}
	pictures := map[string]func(*bytes.Buffer){
		latencyFile: h.latency, rateFile: h.rate, leaderFile: h.leaders,
		timelineFile: func(b *bytes.Buffer) { h.timeline(b, first(results)) },
	}
	if len(clocks) > 0 {
		pictures[clockFile] = func(b *bytes.Buffer) { h.clocks(b, clocks) }
	}
	for name, draw := range pictures {
		var b bytes.Buffer
		draw(&b)
		if err := os.WriteFile(filepath.Join(dir, name), b.Bytes(), 0o644); err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
	}
	var b bytes.Buffer
	if err := tmpl.Execute(&b, data); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return os.WriteFile(filepath.Join(dir, Index), b.Bytes(), 0o644)
}

func failedModel(results []check.Result) bool {
	for _, r := range results {
		if r.Check == check.Linearizable && r.Verdict == check.Fail {
			return true
		}
	}
	return false
}

// first is the index of the first operation at fault, 0 if there is none.
func first(results []check.Result) int {
	n := 0
	for _, r := range results {
		if r.Verdict == check.Fail && r.First > 0 && (n == 0 || r.First < n) {
			n = r.First
		}
	}
	return n
}
