package report

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockerd/lockerd/jepsen/check"
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
			for _, name := range []string{latencyFile, rateFile, timelineFile} {
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
