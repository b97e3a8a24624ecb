package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Patch replaces Old by New in File, where it must stand exactly once. File is
// relative to the source tree, to a module ("github.com/x/y:file.go"), or to the
// Go tree ("go:src/runtime/x.go"). With Old empty, New is the whole of a new file.
type Patch struct {
	File, Old, New string
}

// Write puts what go build needs for the patches into dir, and returns its
// arguments. root is the source tree.
func Write(ctx context.Context, root, dir string, patches []Patch) ([]string, error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("write an overlay: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("write an overlay: %w", err)
	}
	w := &writer{ctx: ctx, root: root, dir: dir, replace: map[string]string{}, modules: map[string]string{}}
	for _, p := range patches {
		if err := w.patch(p); err != nil {
			return nil, err
		}
	}
	return w.finish()
}

type writer struct {
	ctx       context.Context
	root, dir string
	replace   map[string]string // files of the source and of Go, by path: their copies
	modules   map[string]string // the directories of copied modules
}

func (w *writer) patch(p Patch) error {
	where, name, ok := strings.Cut(p.File, ":")
	var path string
	switch {
	case !ok:
		path = filepath.Join(w.root, p.File)
	case where == "go":
		goroot, err := w.goTool("env", "GOROOT")
		if err != nil {
			return err
		}
		path = filepath.Join(goroot, name)
	default:
		// An overlay may not touch the module cache: such a module is replaced whole.
		dir, err := w.module(where)
		if err != nil {
			return err
		}
		return rewrite(filepath.Join(dir, name), filepath.Join(dir, name), p)
	}
	from, copied := w.replace[path]
	if !copied {
		from = path
		w.replace[path] = filepath.Join(w.dir, fmt.Sprintf("%d-%s", len(w.replace), filepath.Base(path)))
	}
	return rewrite(from, w.replace[path], p)
}

// module copies a module, once.
func (w *writer) module(path string) (string, error) {
	if dir, ok := w.modules[path]; ok {
		return dir, nil
	}
	from, err := w.goTool("list", "-m", "-f", "{{.Dir}}", path)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(w.dir, "module-"+filepath.Base(path))
	if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
		return "", fmt.Errorf("copy %s: %w", path, err)
	}
	w.modules[path] = dir
	return dir, nil
}

// finish writes the files that name all copies.
func (w *writer) finish() (args []string, err error) {
	if len(w.replace) > 0 {
		b, err := json.MarshalIndent(map[string]any{"Replace": w.replace}, "", "  ")
		if err != nil {
			return nil, err
		}
		file := filepath.Join(w.dir, "overlay.json")
		if err := os.WriteFile(file, b, 0o644); err != nil {
			return nil, fmt.Errorf("write an overlay: %w", err)
		}
		args = append(args, "-overlay", file, "-ldflags=-checklinkname=0")
	}
	if len(w.modules) == 0 {
		return args, nil
	}
	mod, err := os.ReadFile(filepath.Join(w.root, "go.mod"))
	if err != nil {
		return nil, fmt.Errorf("write an overlay: %w", err)
	}
	sum, err := os.ReadFile(filepath.Join(w.root, "go.sum"))
	if err != nil {
		return nil, fmt.Errorf("write an overlay: %w", err)
	}
	for path, dir := range w.modules {
		mod = append(mod, fmt.Sprintf("\nreplace %s => %s\n", path, dir)...)
	}
	file := filepath.Join(w.dir, "go.mod")
	err = errors.Join(os.WriteFile(file, mod, 0o644), os.WriteFile(filepath.Join(w.dir, "go.sum"), sum, 0o644))
	return append(args, "-modfile", file), err
}

// rewrite writes a patched copy of a file, which may be the file itself.
func rewrite(from, to string, p Patch) error {
	text := p.New
	if p.Old != "" {
		b, err := os.ReadFile(from)
		if err != nil {
			return fmt.Errorf("patch: %w", err)
		}
		if text, err = apply(string(b), p); err != nil {
			return err
		}
	}
	// What was copied from the module cache is read-only.
	if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("patch: %w", err)
	}
	return os.WriteFile(to, []byte(text), 0o644)
}

func (w *writer) goTool(args ...string) (string, error) {
	cmd := exec.CommandContext(w.ctx, "go", args...)
	cmd.Dir = w.root
	b, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(b)), nil
}

// ErrMoved says that the source is no longer what a patch was written for.
var ErrMoved = errors.New("the text to be replaced does not stand there once")

func apply(text string, p Patch) (string, error) {
	if n := strings.Count(text, p.Old); n != 1 {
		return "", fmt.Errorf("patch %s: %w but %d times: %q", p.File, ErrMoved, n, p.Old)
	}
	return strings.Replace(text, p.Old, p.New, 1), nil
}
