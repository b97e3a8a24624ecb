package checkpoint

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A context file is the root's power to whoever could have written it, on whatever way.
func TestTrust(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it takes root to give files to others")
	}
	const other = 65534
	mkdir := func(mode os.FileMode, uid int) func(string) error {
		return func(path string) error {
			return errors.Join(os.Mkdir(path, 0o700), os.Chmod(path, mode), os.Lchown(path, uid, 0))
		}
	}
	file := func(mode os.FileMode, uid, gid int) func(string) error {
		return func(path string) error {
			return errors.Join(os.WriteFile(path, []byte("x"), 0o600), os.Chmod(path, mode), os.Lchown(path, uid, gid))
		}
	}
	link := func(to string, uid int) func(string) error {
		return func(path string) error { return errors.Join(os.Symlink(to, path), os.Lchown(path, uid, uid)) }
	}
	type entry struct {
		name string
		make func(string) error
	}
	mine := entry{"f", file(0o600, 0, 0)}
	for _, c := range []struct {
		name  string
		made  []entry
		path  string
		wrong string // "" if it is to be trusted
	}{
		{"root's", []entry{mine}, "f", ""},
		{"that others may read", []entry{{"f", file(0o644, 0, other)}}, "f", ""},
		{"another's", []entry{{"f", file(0o600, other, 0)}}, "f", "it belongs to user 65534"},
		{"that a group may write", []entry{{"f", file(0o660, 0, other)}}, "f", "may write there (mode 660)"},
		{"that all may write", []entry{{"f", file(0o602, 0, 0)}}, "f", "may write there (mode 602)"},
		{"in another's directory", []entry{{"d", mkdir(0o755, other)}, {"d/f", mine.make}}, "d/f", "/d belongs to user 65534"},
		{"in a directory of all", []entry{{"d", mkdir(0o777, 0)}, {"d/f", mine.make}}, "d/f", "may rename and replace what is in it (mode 777)"},
		{"in a directory of a group", []entry{{"d", mkdir(0o770, 0)}, {"d/f", mine.make}}, "d/f", "may rename and replace what is in it (mode 770)"},
		{"below such a one", []entry{{"d", mkdir(0o777, 0)}, {"d/e", mkdir(0o755, 0)}, {"d/e/f", mine.make}}, "d/e/f", "may rename"},
		{"in a sticky directory", []entry{{"d", mkdir(0o777|os.ModeSticky, 0)}, {"d/f", mine.make}}, "d/f", ""},
		{"another's in a sticky directory", []entry{{"d", mkdir(0o777|os.ModeSticky, 0)}, {"d/f", file(0o600, other, 0)}}, "d/f", "it belongs to user 65534"},
		{"behind a link", []entry{mine, {"l", link("f", 0)}}, "l", ""},
		{"behind another's link", []entry{mine, {"l", link("f", other)}}, "l", "/l belongs to user 65534"},
		{"behind a link into a directory of all", []entry{{"d", mkdir(0o777, 0)}, {"d/f", mine.make}, {"l", link("d/f", 0)}}, "l", "may rename"},
		{"behind a link of a directory", []entry{{"d", mkdir(0o755, 0)}, {"d/f", mine.make}, {"l", link("d", 0)}}, "l/f", ""},
		{"behind a link that leads up", []entry{{"d", mkdir(0o777, 0)}, {"d/e", mkdir(0o755, 0)}, {"e", link("d/e", 0)}, {"d/f", mine.make}, mine}, "e/../f", "may rename"},
		{"by way of .", []entry{{"d", mkdir(0o755, 0)}, mine}, "d/.././f", ""},
		{"no file", nil, "f", "open "},
		{"a link to itself", []entry{{"f", link("f", 0)}}, "f", "too many levels of symbolic links"},
		{"a pipe", []entry{{"f", func(path string) error { return syscall.Mkfifo(path, 0o600) }}}, "f", "f is no regular file"},
		{"a directory", nil, ".", "is a directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for _, e := range c.made {
				if err := e.make(filepath.Join(dir, e.name)); err != nil {
					t.Fatal(err)
				}
			}
			f, err := (&Plan{File: dir + "/" + c.path}).open()
			if err == nil {
				_ = f.Close()
			}
			if c.wrong == "" && err != nil || c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)) {
				t.Errorf("%v, want %q", err, c.wrong)
			}
			e := (*Error)(nil)
			if err != nil && (!errors.As(err, &e) || e.Class != Args) {
				t.Errorf("the class of %v", err)
			}
			if !errors.Is(err, ErrUntrusted) {
				return
			}
			if f, err = (&Plan{File: dir + "/" + c.path, Trusted: true}).open(); err != nil {
				t.Fatalf("trusted: %v", err)
			}
			_ = f.Close()
		})
	}
	t.Run("relative", func(t *testing.T) {
		t.Chdir(t.TempDir())
		if err := errors.Join(mine.make("f"), os.Mkdir("d", 0o700), os.Chmod("d", 0o777), mine.make("d/f")); err != nil {
			t.Fatal(err)
		}
		if err := Trust("f"); err != nil {
			t.Error(err)
		}
		if err := Trust("d/f"); !errors.Is(err, ErrUntrusted) {
			t.Error(err)
		}
		if err := Trust("d"); !errors.Is(err, ErrUntrusted) {
			t.Error(err)
		}
	})
	t.Run("opened", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "f")
		if err := file(0o600, other, 0)(path); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := Restart(t.Context(), Plan{Reader: f}); !errors.Is(err, ErrUntrusted) {
			t.Error(err)
		}
		if _, err := Restart(t.Context(), Plan{Reader: f, Trusted: true}); errors.Is(err, ErrUntrusted) {
			t.Error(err)
		}
	})
}
