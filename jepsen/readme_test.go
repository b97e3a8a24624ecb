package jepsen

import (
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/lockerd/lockerd/jepsen/check"
	"github.com/lockerd/lockerd/jepsen/nemesis"
	"github.com/lockerd/lockerd/jepsen/overlay"
)

func readme(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// rows are the cells of the first table below a heading of the README, without its head.
func rows(t *testing.T, heading string) (all [][]string) {
	t.Helper()
	_, rest, ok := strings.Cut(readme(t), "\n## "+heading+"\n")
	_, rest, table := strings.Cut(rest, "|---|")
	if !ok || !table {
		t.Fatalf("no table below %q", heading)
	}
	for _, line := range strings.Split(rest, "\n")[1:] {
		if !strings.HasPrefix(line, "|") {
			break
		}
		var cells []string
		for _, c := range strings.Split(strings.Trim(line, "|"), " | ") {
			cells = append(cells, strings.TrimSpace(c))
		}
		all = append(all, cells)
	}
	return all
}

var quoted = regexp.MustCompile("`([^`]+)`")

// names are the words of a cell that are quoted as code.
func names(cell string) (all []string) {
	for _, m := range quoted.FindAllStringSubmatch(cell, -1) {
		all = append(all, m[1])
	}
	return all
}

// Every row of the track record names what would find the same again: a test that runs
// with make test, and the history if one was kept.
func TestTrackRecord(t *testing.T) {
	kept := map[string]bool{}
	for _, row := range rows(t, "Track record") {
		if len(row) != 4 {
			t.Errorf("%d cells, want 4: %q", len(row), row)
			continue
		}
		tests := 0
		for _, name := range names(row[3]) {
			dir, test, isTest := strings.Cut(name, ".")
			_, history, isHistory := strings.Cut(name, "regressions/")
			switch {
			case isTest:
				tests++
				if err := runs(filepath.Join("..", dir), test); err != "" {
					t.Errorf("%s of %q %s", name, row[0], err)
				}
			case isHistory:
				kept[history] = true
				// run.TestRegressions has every directory there is.
				if _, err := os.Stat(filepath.Join("regressions", history, "history.jsonl")); err != nil {
					t.Errorf("%s of %q: %v", name, row[0], err)
				}
			default:
				t.Errorf("%q of %q is neither a test nor a history", name, row[0])
			}
		}
		if tests == 0 {
			t.Errorf("%q has no test", row[0])
		}
	}
	// Others are of deliberate faults. None is of something that nobody knows any more.
	for _, m := range overlay.Mutants {
		kept[m.Name] = true
	}
	dirs, err := os.ReadDir("regressions")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		if !kept[d.Name()] {
			t.Errorf("regressions/%s is neither in the track record nor that of a deliberate fault", d.Name())
		}
	}
}

// runs says what keeps a test from running in a package without build tags; empty if
// nothing does.
func runs(dir, test string) string {
	p, err := build.ImportDir(dir, 0)
	if err != nil {
		return err.Error()
	}
	for _, name := range slices.Concat(p.TestGoFiles, p.XTestGoFiles) {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			return err.Error()
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Name.Name == test && fn.Recv == nil {
				return skips(fn)
			}
		}
	}
	return "does not exist, or only with build tags"
}

func skips(fn *ast.FuncDecl) (why string) {
	ast.Inspect(fn.Body, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok && slices.Contains([]string{"Skip", "Skipf", "SkipNow", "Short"}, s.Sel.Name) {
			why = "may be skipped"
		}
		return true
	})
	return why
}

// What the track record says of make test is so: the tests of all packages run, and none
// is left out.
func TestMakeRunsAllTests(t *testing.T) {
	b, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	makefile := string(b)
	if !regexp.MustCompile(`(?m)^test:.*\brace\b`).MatchString(makefile) {
		t.Error("make test does not make race")
	}
	recipe := regexp.MustCompile(`(?m)^race:\n((?:\t.*\n)+)`).FindStringSubmatch(makefile)
	if recipe == nil || !regexp.MustCompile(`go test .*\./\.\.\.`).MatchString(recipe[1]) || regexp.MustCompile(`-(run|skip|short|tags)\b`).MatchString(recipe[1]) {
		t.Errorf("make race is %q", recipe)
	}
}

// The tables of faults and of deliberate faults have those that there are, and every check
// is told of.
func TestTablesAreWhole(t *testing.T) {
	var faults, mutants, known []string
	for _, row := range rows(t, "Faults") {
		faults = append(faults, names(row[0])...)
	}
	same(t, "faults", faults, nemesis.Kinds())
	for _, row := range rows(t, "It can fail") {
		name, about, _ := strings.Cut(strings.TrimPrefix(row[0], "`"), "`: ")
		mutants = append(mutants, name)
		for _, m := range overlay.Mutants {
			if m.Name == name && (m.About != about || m.Check != row[1]) {
				t.Errorf("%s: %q, for %q; the table has %q, for %q", name, m.About, m.Check, about, row[1])
			}
		}
	}
	for _, m := range overlay.Mutants {
		known = append(known, m.Name)
	}
	same(t, "deliberate faults", mutants, known)
	text := strings.ToLower(strings.Join(strings.Fields(readme(t)), " "))
	for _, c := range check.Checks {
		if !strings.Contains(text, strings.TrimSuffix(c.Name, " (porcupine)")) {
			t.Errorf("check %q is not told of", c.Name)
		}
	}
}

func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	got, want = slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		t.Errorf("the table of %s has\n%q, and there are\n%q", what, got, want)
	}
}
