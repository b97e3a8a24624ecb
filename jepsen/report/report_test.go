package report

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/lockerd/lockerd/jepsen/check"
	"github.com/lockerd/lockerd/jepsen/history"
	"github.com/lockerd/lockerd/jepsen/run"
)

// Every stored history can be shown, and what failed is said.
func TestReport(t *testing.T) {
	dirs, err := filepath.Glob("../regressions/*")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no histories: %v", err)
	}
	for _, dir := range dirs {
		if info, err := os.Stat(filepath.Join(dir, "history.jsonl")); err != nil || info.Size() > 64<<10 {
			continue // the large ones add time only
		}
		t.Run(filepath.Base(dir), func(t *testing.T) {
			in, err := run.Load(dir)
			if err != nil {
				t.Fatal(err)
			}
			c, err := run.LoadConfig(dir)
			if err != nil {
				t.Fatal(err)
			}
			results := check.All(in)
			out := t.TempDir()
			if err := Write(out, c, run.Summarize(in), in, results); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{latencyFile, rateFile, timelineFile, leaderFile} {
				sound(t, filepath.Join(out, name))
			}
			b, err := os.ReadFile(filepath.Join(out, Index))
			if err != nil || !strings.Contains(string(b), `<h1 class="fail">fail</h1>`) {
				t.Errorf("the page does not say fail: %v", err)
			}
			if _, err := os.Stat(filepath.Join(out, porcupineFile)); failedModel(results) && err != nil {
				t.Errorf("no picture of the lock without an order: %v", err)
			}
		})
	}
}

// Clocks that could be set are drawn: where they were, and how fast.
func TestClocks(t *testing.T) {
	out := t.TempDir()
	samples := []run.ClockSample{
		{Time: time.Second, Node: "n1", Rate: 1},
		{Time: 2 * time.Second, Node: "n1", Offset: time.Hour, Rate: 4},
		{Time: 2 * time.Second, Node: "n2", Offset: -time.Hour, Rate: 0.25},
	}
	if err := history.WriteLines(filepath.Join(out, "clocks.jsonl"), samples); err != nil {
		t.Fatal(err)
	}
	in := check.Input{Ops: []history.Op{{Process: history.Nemesis, Type: history.Info, F: "leader", Value: "n1 2"}, {Index: 1, Time: 3 * time.Second, Process: history.Nemesis, Type: history.Info, F: "leader"}}}
	if err := Write(out, run.Config{}, run.Summarize(in), in, nil); err != nil {
		t.Fatal(err)
	}
	sound(t, filepath.Join(out, clockFile))
	b, err := os.ReadFile(filepath.Join(out, Index))
	if err != nil || !strings.Contains(string(b), clockFile) || !strings.Contains(string(b), leaderFile) {
		t.Errorf("the page does not show them: %v", err)
	}
	b, err = os.ReadFile(filepath.Join(out, clockFile))
	if n := strings.Count(string(b), "<polyline"); err != nil || n != 4 {
		t.Errorf("%d lines of two servers, %v", n, err)
	}
	// What is ahead is drawn higher than what is behind, and what is fast than what is slow.
	var x, first, ahead, behind float64
	lines := regexp.MustCompile(`points="([^"]*)"`).FindAllStringSubmatch(string(b), -1)
	if _, err := fmt.Sscanf(lines[0][1], "%f,%f %f,%f", &x, &first, &x, &ahead); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(lines[2][1], "%f,%f", &x, &behind); err != nil {
		t.Fatal(err)
	}
	if ahead >= first || behind <= first {
		t.Errorf("an hour ahead is at %v, none at %v, behind at %v", ahead, first, behind)
	}
}

// sound reads an XML file to its end.
func sound(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d := xml.NewDecoder(f)
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
}
