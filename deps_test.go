// Package lockerd_test holds the rules that concern the module as a whole.
package lockerd_test

import (
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/lockerd/lockerd"

// layer says what the non-test code of a package may import.
type layer struct {
	ours    []string // packages of this module, "dir/..." with those below; nil means none
	modules []string // of others; nil means none, "*" any
	std     []string // of the standard library; nil means any
	why     string
}

// layers is keyed by directory; "dir/..." stands for every directory below dir
// that has no line of its own.
var layers = map[string]layer{
	"fsm": {
		std: []string{
			"bytes", "cmp", "container/heap", "encoding/binary", "errors", "fmt", "hash/crc32", "hash/fnv",
			"iter", "maps", "math", "math/bits", "slices", "sort", "strconv", "strings", "unicode/utf8",
		},
		why: "every replica must get the same table from the same log: no clock, I/O, scheduling or chance",
	},
	"transport": {
		modules: []string{"golang.org/x/sys"},
		why:     "bytes and connections are the same whatever they carry; it knows no locks",
	},
	"transport/pipenet": {why: "it stands in for sockets below everything else"},
	"pidprobe": {
		modules: []string{"golang.org/x/sys"},
		why:     "whether a process lives has nothing to do with locks, and pidstat runs without a cluster",
	},
	"freezer": {
		ours:    []string{"freezer/checkpoint/self"},
		modules: []string{"golang.org/x/sys", "github.com/checkpoint-restore/go-criu"},
		why:     "it acts on its host alone; the cluster reaches it through an interface",
	},
	"freezer/checkpoint": {
		modules: []string{
			"golang.org/x/sys", "github.com/checkpoint-restore/go-criu", "github.com/klauspost/compress", "google.golang.org/protobuf",
		},
		why: "it saves processes whatever they hold; who holds locks tells it which",
	},
	"freezer/checkpoint/self": {
		ours:    []string{"freezer/checkpoint"},
		modules: []string{"golang.org/x/sys"},
		why:     "it is between a program that wants to be saved and what saves it; who holds locks starts both",
	},
	"freezer/checkpoint/fencefile": {
		modules: []string{"golang.org/x/sys"},
		why:     "it is a file that two who checkpoint have with jobs in common, and no more",
	},
	"freezer/checkpoint/executor": {
		ours:    []string{"freezer/checkpoint", "freezer/checkpoint/fencefile"},
		modules: []string{"golang.org/x/sys"},
		why:     "it acts on its host; the lock table is an interface to it",
	},
	"job": {
		modules: []string{"golang.org/x/sys"},
		why:     "running a command and passing on its end is the same with and without a lock",
	},
	"client": {
		ours:    []string{"pidprobe", "transport"},
		modules: []string{"golang.org/x/sys"},
		why:     "whoever embeds the client must not get a server with it",
	},
	"cluster": {
		ours:    []string{"fsm", "transport", "pidprobe"},
		modules: []string{"*"},
		why:     "where table, Raft and sockets meet; executors come in through an interface",
	},
	"getopt": {
		modules: []string{"github.com/spf13/pflag"},
		why:     "it reads command lines, whatever they are for",
	},
	"jepsen": {why: "it is the description of what is below it"},
	"jepsen/cmd/jx": {
		ours:    []string{"jepsen/..."},
		modules: []string{"github.com/spf13/pflag", "golang.org/x/sys"},
		why:     "a checker must not share code with what it checks",
	},
	"jepsen/...": {
		ours:    []string{"client", "jepsen/..."},
		modules: []string{"github.com/anishathalye/porcupine", "golang.org/x/sys"},
		why:     "a checker must not share code with what it checks",
	},
	"systest": {
		ours:    []string{"client", "transport", "systest/farm"},
		modules: []string{"golang.org/x/sys"},
		why:     "it tests programs from outside, as their users see them",
	},
	"systest/farm": {
		modules: []string{"golang.org/x/sys"},
		why:     "it runs programs and shares no code with them",
	},
	"cmd/lockbench": {
		ours:    []string{"client", "pidprobe", "transport", "systest/farm"},
		modules: []string{"*"},
		why:     "it measures programs from outside, as their users see them; pidprobe is to name processes as clients do",
	},
	"cmd/internal/freezing": {
		ours: []string{"freezer", "getopt"},
		why:  "it is wiring that three commands have in common",
	},
	"cmd/...": {
		ours: []string{
			"client", "cmd/internal/freezing", "cluster", "fsm", "freezer", "freezer/checkpoint", "freezer/checkpoint/executor",
			"freezer/checkpoint/fencefile", "freezer/checkpoint/self", "getopt", "job", "pidprobe", "transport",
		},
		modules: []string{"*"},
		why:     "commands are wiring and exit codes: what two of them need belongs in a package",
	},
}

func TestImportsRunOneWay(t *testing.T) {
	for dir, files := range packages(t) {
		l, ok := layerOf(dir)
		if !ok {
			t.Errorf("%s has no line in layers: say what it may import, and why", dir)
			continue
		}
		for _, f := range files {
			if strings.HasSuffix(f, "_test.go") {
				continue
			}
			for _, path := range imports(t, f) {
				if !l.allows(path) {
					t.Errorf("%s imports %s: %s", f, path, l.why)
				}
			}
		}
	}
}

// A rule that cannot fail is none.
func TestLayersRefuse(t *testing.T) {
	for _, c := range []struct {
		dir, path string
		want      bool
	}{
		{"fsm", "time", false},
		{"fsm", "slices", true},
		{"fsm", module + "/transport", false},
		{"fsm", "golang.org/x/sys/unix", false},
		{"cluster", module + "/fsm", true},
		{"cluster", module + "/client", false},
		{"cluster", "github.com/hashicorp/memberlist", true},
		{"client", module + "/fsm", false},
		{"transport", module + "/transport/pipenet", false},
		{"cmd/lockerd", module + "/cmd/lockctl", false},
		{"cmd/lockerd", module + "/cluster", true},
		{"jepsen/checker", module + "/fsm", false},
		{"jepsen/checker", module + "/jepsen/history", true},
	} {
		l, ok := layerOf(c.dir)
		if !ok {
			t.Fatalf("no layer for %s", c.dir)
		}
		if got := l.allows(c.path); got != c.want {
			t.Errorf("%s may import %s: %v, want %v", c.dir, c.path, got, c.want)
		}
	}
}

func layerOf(dir string) (layer, bool) {
	if l, ok := layers[dir]; ok {
		return l, true
	}
	top, _, below := strings.Cut(dir, "/")
	l, ok := layers[top+"/..."]
	return l, ok && below
}

func (l layer) allows(path string) bool {
	if ours, ok := strings.CutPrefix(path, module+"/"); ok {
		return slices.ContainsFunc(l.ours, func(p string) bool {
			tree, ok := strings.CutSuffix(p, "/...")
			return p == ours || ok && within(ours, tree)
		})
	}
	if first, _, _ := strings.Cut(path, "/"); strings.Contains(first, ".") {
		return slices.ContainsFunc(l.modules, func(m string) bool { return m == "*" || within(path, m) })
	}
	return l.std == nil || slices.Contains(l.std, path)
}

func within(path, tree string) bool { return path == tree || strings.HasPrefix(path, tree+"/") }

// The table is a value that entries are folded into. Map order, goroutines,
// channels and variables of the package would make it depend on something else.
func TestFSMIsPure(t *testing.T) {
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range packages(t)["fsm"] {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	if len(files) == 0 {
		t.Fatal("no files in fsm")
	}
	for _, v := range impurities(t, fset, files) {
		t.Errorf("%s: %s", fset.Position(v.pos), v.what)
	}
}

func TestImpurityIsFound(t *testing.T) {
	const src = `package p
import "errors"
var ErrFine = errors.New("fine")
var counter int
func f(m map[int]int, c chan int) { for range m { counter++ }; go f(m, c) }`
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, "p.go", src, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, v := range impurities(t, fset, []*ast.File{f}) {
		got = append(got, v.what)
	}
	for _, want := range []string{"a goroutine", "a channel", "a range over a map in f", "a variable of the package: counter"} {
		if !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, want) }) {
			t.Errorf("%q was not found in %q", want, got)
		}
	}
	if len(got) != 4 {
		t.Errorf("found %q, want four", got)
	}
}

type impurity struct {
	pos  token.Pos
	what string
}

// orderFree lists the functions of fsm that may range over a map, and why the
// order does not show.
var orderFree = map[string]string{
	"checkIndexes": "it only sums up",
	"OnHost":       "what it collects is sorted by age afterwards",
	"claims":       "what it collects is sorted by age before it is returned",
}

func impurities(t *testing.T, fset *token.FileSet, files []*ast.File) []impurity {
	t.Helper()
	info := &types.Info{Types: map[ast.Expr]types.TypeAndValue{}}
	conf := types.Config{Importer: importer.ForCompiler(fset, "source", nil)}
	pkg, err := conf.Check("p", fset, files, info)
	if err != nil {
		t.Fatal(err)
	}
	var found []impurity
	errorType := types.Universe.Lookup("error").Type()
	for _, f := range files {
		var in string // the function walked through
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				in = n.Name.Name
			case *ast.GoStmt:
				found = append(found, impurity{n.Pos(), "a goroutine"})
			case *ast.ChanType:
				found = append(found, impurity{n.Pos(), "a channel"})
			case *ast.RangeStmt:
				if _, ok := info.Types[n.X].Type.Underlying().(*types.Map); ok && orderFree[in] == "" {
					found = append(found, impurity{n.Pos(), "a range over a map in " + in + ": sort its keys, or say in orderFree why the order does not show"})
				}
			}
			return true
		})
	}
	for _, name := range pkg.Scope().Names() {
		v, ok := pkg.Scope().Lookup(name).(*types.Var)
		if ok && v.Type() != errorType {
			found = append(found, impurity{v.Pos(), "a variable of the package: " + name})
		}
	}
	return found
}

// packages maps each directory of the module that has Go files to their paths.
func packages(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || path != "." && strings.HasPrefix(d.Name(), ".")):
			return fs.SkipDir
		case !d.IsDir() && strings.HasSuffix(path, ".go") && filepath.Dir(path) != ".":
			dir := filepath.ToSlash(filepath.Dir(path))
			all[dir] = append(all[dir], path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 3 {
		t.Fatalf("only %v found: is this the module's root?", slices.Sorted(maps.Keys(all)))
	}
	return all
}

func imports(t *testing.T, file string) []string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	paths := make([]string, len(f.Imports))
	for i, s := range f.Imports {
		if paths[i], err = strconv.Unquote(s.Path.Value); err != nil {
			t.Fatal(err)
		}
	}
	return paths
}
