package lockerd_test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// documented are the packages whose every exported name has a comment.
var documented = []string{"fsm", "transport", "transport/pipenet", "cluster", "client", "freezer", "freezer/checkpoint", "getopt", "job", "pidprobe"}

// interfaceMethods are known to every reader by the interface that they satisfy.
var interfaceMethods = []string{
	"Accept", "Addr", "Close", "Error", "LocalAddr", "MarshalJSON", "MarshalText", "Network", "Read", "RemoteAddr",
	"SetDeadline", "SetReadDeadline", "SetWriteDeadline", "String", "UnmarshalJSON", "UnmarshalText", "Unwrap", "Write",
	"Len", "Less", "Swap", "Push", "Pop",
}

// Every package says what it is, in one place.
func TestPackageDocs(t *testing.T) {
	for dir, files := range packages(t) {
		var in []string
		code := false
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			code = true
			f := parse(t, name)
			if f.Doc == nil {
				continue
			}
			in = append(in, name)
			want := "Package " + f.Name.Name + " "
			if f.Name.Name == "main" {
				want = "Command " + filepath.Base(dir) + " "
			}
			text := f.Doc.Text()
			// Of a program, godoc takes its capitalized name as well.
			if named := f.Name.Name == "main" && strings.HasPrefix(strings.ToLower(text), filepath.Base(dir)+" "); !named && !strings.HasPrefix(text, want) {
				t.Errorf("%s: package doc begins %q, want %q", name, firstLine(text), want)
			}
		}
		if code && len(in) != 1 {
			t.Errorf("%s: %d files have a package doc %v, want one", dir, len(in), in)
		}
	}
}

func TestExportedNamesHaveDocs(t *testing.T) {
	all := packages(t)
	for _, dir := range documented {
		for _, name := range all[dir] {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			for _, d := range parse(t, name).Decls {
				for _, missing := range undocumented(d) {
					t.Errorf("%s: %s has no comment", name, missing)
				}
			}
		}
	}
}

// undocumented lists the exported names of a declaration that no comment covers.
func undocumented(d ast.Decl) []string {
	var missing []string
	switch d := d.(type) {
	case *ast.FuncDecl:
		known := d.Recv != nil && (slices.Contains(interfaceMethods, d.Name.Name) || !receiver(d).IsExported())
		if d.Doc == nil && d.Name.IsExported() && !known {
			missing = append(missing, d.Name.Name)
		}
	case *ast.GenDecl:
		if d.Tok == token.IMPORT || d.Doc != nil {
			return nil
		}
		about := "" // a comment may introduce several
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				if s.Doc == nil && s.Comment == nil && s.Name.IsExported() {
					missing = append(missing, s.Name.Name)
				}
			case *ast.ValueSpec:
				about += s.Doc.Text()
				name := s.Names[0]
				if s.Doc == nil && s.Comment == nil && name.IsExported() && !typedConst(d, s) && !strings.Contains(about, name.Name) {
					missing = append(missing, name.Name)
				}
			}
		}
	}
	return missing
}

// typedConst says whether s is one of a list of values of a named type, which
// the type's comment introduces.
func typedConst(d *ast.GenDecl, s *ast.ValueSpec) bool {
	first, ok := d.Specs[0].(*ast.ValueSpec)
	return d.Tok == token.CONST && ok && (first.Type != nil || s.Type != nil)
}

func receiver(d *ast.FuncDecl) *ast.Ident {
	e := d.Recv.List[0].Type
	for {
		switch x := e.(type) {
		case *ast.StarExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.Ident:
			return x
		default:
			return ast.NewIdent("_")
		}
	}
}

// A file that has grown beyond this holds more than one noun.
func TestFileLength(t *testing.T) {
	for _, files := range packages(t) {
		for _, name := range files {
			limit := 600
			if strings.HasSuffix(name, "_test.go") {
				limit = 1000
			}
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if n := bytes.Count(b, []byte("\n")); n > limit {
				t.Errorf("%s has %d lines, at most %d", name, n, limit)
			}
		}
	}
}

func parse(t *testing.T, name string) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}
