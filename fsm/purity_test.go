package fsm

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// mapRanges are the functions that range over a map. Each sorts what it has
// collected, or only counts.
var mapRanges = map[string]bool{"OnHost": true, "claims": true, "checkIndexes": true}

// TestPure keeps out of the package what would let replicas differ.
func TestPure(t *testing.T) {
	forbidden := map[string]bool{
		"time": true, "os": true, "io": true, "net": true, "sync": true, "context": true, "log": true,
		"math/rand": true, "math/rand/v2": true, "crypto/rand": true, "runtime": true, "unsafe": true, "reflect": true, "maps": true,
	}
	paths, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	maps := mapNames(t, paths)
	if len(maps) < 5 {
		t.Fatalf("found no maps but %v", maps)
	}
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		files++
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, imp := range file.Imports {
			name, _ := strconv.Unquote(imp.Path.Value)
			if first, _, _ := strings.Cut(name, "/"); forbidden[name] || forbidden[first] || strings.Contains(first, ".") {
				t.Errorf("%s imports %s", path, name)
			}
		}
		for _, decl := range file.Decls {
			if d, ok := decl.(*ast.GenDecl); ok && d.Tok == token.VAR {
				for _, spec := range d.Specs {
					for _, name := range spec.(*ast.ValueSpec).Names {
						if !strings.HasPrefix(name.Name, "err") && !strings.HasPrefix(name.Name, "Err") {
							t.Errorf("%s: package variable %s", path, name.Name)
						}
					}
				}
			}
			f, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			ast.Inspect(f, func(n ast.Node) bool {
				where := func() token.Position { return set.Position(n.Pos()) }
				switch n := n.(type) {
				case *ast.GoStmt, *ast.SelectStmt, *ast.ChanType, *ast.SendStmt:
					t.Errorf("%v: a goroutine or a channel", where())
				case *ast.BasicLit:
					if n.Kind == token.FLOAT {
						t.Errorf("%v: a floating-point number", where())
					}
				case *ast.RangeStmt:
					if sel, ok := n.X.(*ast.SelectorExpr); ok && maps[sel.Sel.Name] && !mapRanges[f.Name.Name] {
						t.Errorf("%v: %s ranges over a map", where(), f.Name.Name)
					}
				}
				return true
			})
		}
	}
	if files < 10 {
		t.Errorf("only %d files were looked at", files)
	}
}

// mapNames returns the names of the struct fields that are maps.
func mapNames(t *testing.T, paths []string) map[string]bool {
	names := map[string]bool{}
	for _, path := range paths {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if field, ok := n.(*ast.Field); ok {
				if _, ok := field.Type.(*ast.MapType); ok {
					for _, name := range field.Names {
						names[name.Name] = true
					}
				}
			}
			return true
		})
	}
	return names
}
