package checkpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// made is a context file of made-up parts.
func made(tb testing.TB, compress bool) []byte {
	tb.Helper()
	dir := tb.TempDir()
	for name, text := range map[string]string{"core-7.img": "core", "pages-1.img": strings.Repeat("page ", 40), "empty.img": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	m := &Manifest{Format: Format, Root: 7, Processes: []Process{{PID: 7, Group: 7, Session: 7}}}
	if err := m.sumParts(dir); err != nil {
		tb.Fatal(err)
	}
	var out bytes.Buffer
	if err := writeContext(&out, m, dir, compress); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

// Whatever is altered or cut off is refused. (Of a compressed file there are bits that
// change nothing that comes out of it.)
func TestEveryAlteredByteIsFound(t *testing.T) {
	whole := made(t, false)
	if _, err := Inspect(bytes.NewReader(whole), true); err != nil {
		t.Fatal(err)
	}
	// Not each byte, for the time that it takes: 7 reaches every kind of field in time.
	for i := 0; i < len(whole); i += 7 {
		bad := bytes.Clone(whole)
		bad[i] ^= 0x10
		if _, err := Inspect(bytes.NewReader(bad), true); !isDamage(err) {
			t.Errorf("byte %d altered: %v", i, err)
		}
		if _, err := Inspect(bytes.NewReader(whole[:i]), true); !isDamage(err) {
			t.Errorf("cut at %d of %d: %v", i, len(whole), err)
		}
	}
	packed := made(t, true)
	for i := 0; i < len(packed); i += 7 {
		if _, err := Inspect(bytes.NewReader(packed[:i]), true); !isDamage(err) {
			t.Errorf("zstd, cut at %d of %d: %v", i, len(packed), err)
		}
	}
	for _, data := range [][]byte{whole, packed} {
		more := append(bytes.Clone(data), "more"...)
		if _, err := Inspect(bytes.NewReader(more), true); !isDamage(err) {
			t.Errorf("with more at the end: %v", err)
		}
	}
}

func isDamage(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Class == Perm
}

func TestTheDamagedPartIsNamed(t *testing.T) {
	whole := made(t, false)
	for _, part := range []struct{ text, name string }{{"core", "core-7.img"}, {"page page", "pages-1.img"}, {`"format"`, manifestName}} {
		bad := bytes.Clone(whole)
		at := bytes.LastIndex(bad, []byte(part.text))
		bad[at] ^= 1
		_, err := Inspect(bytes.NewReader(bad), true)
		if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), part.name) {
			t.Errorf("%s altered: %v", part.name, err)
		}
		_, err = Inspect(bytes.NewReader(whole[:at]), true)
		if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), part.name) {
			t.Errorf("cut in %s: %v", part.name, err)
		}
	}
}

func TestLaterFormatsAreRefused(t *testing.T) {
	later := bytes.Replace(made(t, false), []byte("lockerd context 1 "), []byte("lockerd context 2 "), 1)
	_, err := Inspect(bytes.NewReader(later), true)
	if !isDamage(err) || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "format 2") {
		t.Errorf("a later format: %v", err)
	}
}

// What ends before its first header does names that, and is told from what is no context file.
func TestWhatEndsInItsHeader(t *testing.T) {
	for _, compress := range []bool{false, true} {
		whole := made(t, compress)
		for _, n := range []int{0, 4, 100} {
			_, err := Inspect(bytes.NewReader(whole[:n]), false)
			if want := "header of MANIFEST: the file ends in it"; !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), want) {
				t.Errorf("%d bytes, zstd %t: %v, want %q", n, compress, err, want)
			}
		}
	}
	for _, other := range []string{"x", strings.Repeat("text\n", 1000), strings.Repeat("\x00", 4096)} {
		if _, err := Inspect(strings.NewReader(other), false); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "it is no context file") {
			t.Errorf("%.8q: %v", other, err)
		}
	}
}

// On a restart nothing is started before everything is verified.
func TestADamagedFileStartsNothing(t *testing.T) {
	t.Parallel()
	need(t)
	j := begin(t, "count")
	file, _ := j.save(t)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	n := j.number()
	for _, bad := range [][]byte{data[:len(data)/2], append(data[:len(data)-blockSize*30:len(data)-blockSize*30], bytes.Repeat([]byte{1}, blockSize*30)...)} {
		if err := os.WriteFile(file, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Restart(t.Context(), Plan{File: file}); !errors.Is(err, ErrDamaged) || !isDamage(err) || !strings.HasPrefix(err.Error(), file+": ") {
			t.Errorf("restart: %v", err)
		}
	}
	if exists(j.pid()) || j.number() != n {
		t.Error("something was started")
	}
	noBoxes(t, j.dir)
}

func FuzzInspect(f *testing.F) {
	f.Add(made(f, false))
	f.Add(made(f, true))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Inspect(bytes.NewReader(data), true)
		if e := (*Error)(nil); err != nil && !errors.As(err, &e) {
			t.Errorf("an error without a class: %v", err)
		}
		if err == nil && (m == nil || len(m.Processes) == 0) {
			t.Error("a whole file of no process")
		}
	})
}

// FuzzManifest reads manifests whose sums are right.
func FuzzManifest(f *testing.F) {
	m := &Manifest{Format: Format, Root: 7, Processes: []Process{{PID: 7, Group: 5, Session: 3, Threads: []int{8}}}, Parts: []Part{{Name: "core-7.img"}}}
	text, err := m.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text[bytes.IndexByte(text, '\n')+1:])
	f.Fuzz(func(t *testing.T, body []byte) {
		m, err := decodeManifest(append(fmt.Appendf(nil, manifestLine, Format, crc32.Checksum(body, castagnoli)), body...))
		if err != nil {
			if !isDamage(err) {
				t.Errorf("the class of %v", err)
			}
			return
		}
		for _, p := range m.Parts {
			if filepath.Base(p.Name) != p.Name || p.Name == manifestName || p.Size < 0 {
				t.Errorf("a part %+v", p)
			}
		}
		for _, p := range m.Processes {
			if p.PID <= 0 {
				t.Errorf("a process %+v", p)
			}
		}
		_, _ = m.leaders(true, true)
	})
}

// FuzzText reads lines of CRIU's logs, and of proc(5).
func FuzzText(f *testing.F) {
	f.Add("(00.01) Error (criu/files-reg.c:1): File tmp/a b has bad size 5 (expect 3)\n(00.02) Warn  (criu/a.c:1): odd")
	f.Add("12 (a b) c) S 1 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 8192000 300")
	f.Fuzz(func(t *testing.T, text string) {
		var l criuLog
		l.scan(strings.NewReader(text))
		if e := l.judge(); e.Error() == "" || strings.Contains(e.Error(), "\n") || e.Errno == 0 || len(l.errors) > maxLog {
			t.Errorf("%q is %q, %d", text, e, e.Errno)
		}
		if p, err := parseStat([]byte(text)); err == nil && p.state == 0 {
			t.Errorf("%+v", p)
		}
	})
}

func FuzzImage(f *testing.F) {
	f.Add([]byte("\x19\x43\x56\x54\x01\x02\x03\x04\x02\x00\x00\x00ab\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if img, err := parseImage(data); err == nil && !bytes.Equal(img.bytes(), data) {
			t.Error("it is not written as it was read")
		}
	})
}

func TestRelocations(t *testing.T) {
	for _, c := range []struct{ text, path, want string }{
		{"/tmp/foo=/new", "/tmp/foo", "/new"},
		{"/tmp/foo=/new", "/tmp/foo/1", "/new/1"},
		{"/tmp/foo=/new", "/tmp/fooz", "/tmp/fooz"},
		{"/tmp/foo=/new", "/var/tmp/foo", "/var/tmp/foo"},
		{`/a\=b=/c`, "/a=b/d", "/c/d"},
		{`/a=/c\=d`, "/a/e", "/c=d/e"},
		{`/a\\=/c`, `/a\/e`, "/c/e"},
		{`/a\x=/c`, `/a\x/e`, "/c/e"},
		{"/=/root", "/etc", "/root/etc"},
		{"/a", "", "the relocation \"/a\" is not OLDPATH=NEWPATH"},
		{"/a=/b=/c", "", `the relocation "/a=/b=/c" has two = (one within a path is written \=)`},
		{"a=/b", "", `the old path of the relocation "a=/b" is not canonical`},
		{"/a/../c=/b", "", `the old path of the relocation "/a/../c=/b" is not canonical`},
		{"/a=", "", `the relocation "/a=" is not OLDPATH=NEWPATH`},
	} {
		r, err := ParseRelocation(c.text)
		got := relocate(c.path, []Relocation{r})
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s: %q becomes %q, want %q", c.text, c.path, got, c.want)
		}
	}
	first := []Relocation{{"/a/b", "/1"}, {"/a", "/2"}}
	if got := relocate("/a/b/c", first) + relocate("/a/c", first); got != "/1/c/2/c" {
		t.Errorf("the first match has to count: %s", got)
	}
}

// The images of a file on a full disk are unpacked elsewhere.
func TestARestartFromAFullDisk(t *testing.T) {
	need(t)
	j := begin(t, "count")
	full, other := t.TempDir(), t.TempDir()
	for dir, size := range map[string]string{full: "size=32m", other: "size=4k"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, size); err != nil {
			t.Skip("it takes the right to mount: ", err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	}
	file, _ := j.save(t, func(o *Order) { o.File, o.Compress = filepath.Join(full, "x"), true })
	f, err := os.Create(filepath.Join(full, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, neverEnding{}); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", other)
	var e *Error
	if _, err := Restart(t.Context(), Plan{File: file}); !errors.As(err, &e) || e.Class != Temp || e.Errno != syscall.ENOSPC {
		t.Errorf("without room anywhere: %v", err)
	}
	t.Setenv("TMPDIR", j.dir)
	restart(t, Plan{File: file})
	j.goesOn(t)
	noBoxes(t, full)
	noBoxes(t, j.dir)
}

// neverEnding is /dev/zero.
type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestARelocatedJobFindsItsFiles(t *testing.T) {
	t.Parallel()
	need(t)
	j := begin(t, "count")
	file, _ := j.save(t)
	moved := &job{cmd: j.cmd, dir: filepath.Join(t.TempDir(), "with=sign")}
	if err := os.Rename(j.dir, moved.dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Mkdir(j.dir, 0o700) })
	file = moved.path(filepath.Base(file))
	_, err := Restart(t.Context(), Plan{File: file})
	if e := (*Error)(nil); !errors.As(err, &e) || e.Class != Env || e.Errno != syscall.ENOENT {
		t.Errorf("without its files: %v", err)
	}
	r, err := ParseRelocation(j.dir + "=" + strings.ReplaceAll(moved.dir, "=", `\=`))
	if err != nil {
		t.Fatal(err)
	}
	restart(t, Plan{File: file, Relocations: []Relocation{r}})
	moved.goesOn(t)
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", j.pid())); err != nil || cwd != moved.dir {
		t.Errorf("its working directory is %s, %v", cwd, err)
	}
}

func TestAChangedFileIsRefused(t *testing.T) {
	t.Parallel()
	need(t)
	j := shell(t, `echo old >read; exec 5<read; i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done`)
	file, r := j.save(t)
	if err := os.WriteFile(j.path("read"), []byte("a new one"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Restart(t.Context(), Plan{File: file})
	var e *Error
	if want := j.path("read") + " has 9 bytes, and had 4 when it was checkpointed"; !errors.As(err, &e) || e.Class != Env || e.Errno != syscall.ESTALE || err.Error() != want {
		t.Errorf("%v, want %q", err, want)
	}
	for _, p := range r.Manifest.Processes { // what CRIU had begun to restore
		reapAll([]int{p.PID})
	}
	if err := os.WriteFile(j.path("read"), []byte("old\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	restart(t, Plan{File: file})
	j.goesOn(t)
}

func TestAFullDiskLeavesNothing(t *testing.T) {
	t.Parallel()
	c := need(t)
	j := begin(t, "count")
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=256k"); err != nil {
		t.Skip("it takes the right to mount: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(small, unix.MNT_DETACH) })
	for _, sig := range []syscall.Signal{0, syscall.SIGKILL} {
		_, err := Checkpoint(t.Context(), Order{Target: Tree(j.pid()), File: filepath.Join(small, "x"), Signal: sig, CRIU: c})
		if want := "the file system of " + small + " is full: make room there"; !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), want) {
			t.Errorf("signal %d: %v, want %q", sig, err, want)
		}
		if left, _ := os.ReadDir(small); len(left) > 0 {
			t.Errorf("signal %d: left behind: %v", sig, left)
		}
		j.goesOn(t)
		// Full only when CRIU is done, so that the processes are held.
		var out bytes.Buffer
		_, err = Checkpoint(t.Context(), Order{Target: Tree(j.pid()), Writer: &limited{&out, 1 << 20}, Signal: sig, CRIU: c})
		if !errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), "the file system of") {
			t.Errorf("signal %d, writer: %v", sig, err)
		}
		j.goesOn(t)
		// Full before the images are there, which are not where the file is to be.
		_, err = Checkpoint(t.Context(), Order{Target: Tree(j.pid()), Writer: &out, Scratch: small, Signal: sig, CRIU: c})
		if want := "the file system of " + small + " is full"; !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), want) {
			t.Errorf("signal %d, scratch: %v, want %q", sig, err, want)
		}
		j.goesOn(t)
	}
	// Full when the images are there, and the file is not.
	room := t.TempDir()
	if err := unix.Mount("tmpfs", room, "tmpfs", 0, "size=20m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(room, unix.MNT_DETACH) })
	filled := func() {
		if err := os.WriteFile(filepath.Join(room, "filler"), make([]byte, 20<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("the rest of %s is filled: %v", room, err)
		}
	}
	_, err := Checkpoint(t.Context(), Order{Target: Tree(j.pid()), File: filepath.Join(room, "x"), CRIU: c, Copied: filled})
	if want := "the file system of " + room + " is full"; !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), want) {
		t.Errorf("full later: %v, want %q", err, want)
	}
	j.goesOn(t)
}

// Each file that a checkpoint makes can be the one for which there is no room.
func TestAFullDiskAtEveryStep(t *testing.T) {
	t.Parallel()
	c := need(t)
	j := begin(t, "count")
	options := []string{"size=4k", "size=8k", "size=16k"}
	for n := 2; n <= 12; n++ { // one is the directory that is mounted
		options = append(options, fmt.Sprintf("nr_inodes=%d", n))
	}
	for _, option := range options {
		small := t.TempDir()
		if err := unix.Mount("tmpfs", small, "tmpfs", 0, option); err != nil {
			t.Skip("it takes the right to mount: ", err)
		}
		t.Cleanup(func() { _ = unix.Unmount(small, unix.MNT_DETACH) })
		_, err := Checkpoint(t.Context(), Order{Target: Tree(j.pid()), File: filepath.Join(small, "x"), Signal: syscall.SIGKILL, CRIU: c})
		if want := "the file system of " + small + " is full: make room there"; !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", option, err, want)
		}
		if left, _ := os.ReadDir(small); len(left) > 0 {
			t.Errorf("%s: left behind: %v", option, left)
		}
		j.goesOn(t)
	}
}

func TestPolicies(t *testing.T) {
	t.Parallel()
	c := need(t)
	j := begin(t, "count")
	file := j.path("x")
	if err := os.WriteFile(file, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := Order{Target: Tree(j.pid()), File: file, CRIU: c, Exclusive: true}
	if _, err := Checkpoint(t.Context(), o); !errors.Is(err, syscall.EEXIST) {
		t.Errorf("exclusive: %v", err)
	}
	o.Exclusive, o.Backup = false, j.path("x~")
	o.Locks = []Lock{{Name: "scratch", Mode: "exclusive", Fence: 12}}
	if _, err := Checkpoint(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if old, err := os.ReadFile(o.Backup); err != nil || string(old) != "old" {
		t.Errorf("the backup has %q, %v", old, err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := Inspect(f, true)
	if err != nil || m.Host == "" || m.Kernel == "" || len(m.Features) == 0 || len(m.Locks) != 1 || m.Locks[0] != o.Locks[0] || m.CRIU != c.Version {
		t.Errorf("manifest %+v, %v", m, err)
	}
	out := -1
	for i, f := range m.Files {
		if f.Path == j.path("out") {
			out = i
		}
	}
	if out < 0 || !m.Files[out].Written || m.Files[out].Size == 0 || time.Since(m.Files[out].Modified) > time.Hour {
		t.Errorf("the files in the manifest are %+v", m.Files)
	}
	if _, err := Checkpoint(context.Background(), Order{Target: Tree(j.pid()), File: file, CRIU: c, Incremental: true}); !errors.Is(err, syscall.EOPNOTSUPP) {
		t.Errorf("incremental: %v", err)
	}
	j.goesOn(t)
}

// Whatever stands where the backup is to be, nothing is lost but what the backup replaces.
func TestBackups(t *testing.T) {
	t.Parallel()
	c := need(t)
	j := begin(t, "count")
	write := func(path, text string) string {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	save := func(file, backup string) error {
		_, err := Checkpoint(t.Context(), Order{Target: Tree(j.pid()), File: file, Backup: backup, CRIU: c})
		noBoxes(t, j.dir)
		return err
	}
	refused := func(what, backup string, errno syscall.Errno) {
		t.Helper()
		file := write(j.path("refused"), "old")
		before, _ := os.Lstat(backup)
		err := save(file, backup)
		after, _ := os.Lstat(backup)
		text, e := os.ReadFile(file)
		if !errors.Is(err, errno) || e != nil || string(text) != "old" || (before == nil) != (after == nil) || before != nil && !os.SameFile(before, after) {
			t.Errorf("%s: %v; the old file has %q, %v; in place of the backup is %v", what, err, text, e, after)
		}
	}
	refused("the file itself", j.path("refused"), syscall.EINVAL)
	refused("the file itself, by another path", filepath.Dir(j.dir)+"/./"+filepath.Base(j.dir)+"/refused", syscall.EINVAL)
	linkedDir := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(j.dir, linkedDir); err != nil {
		t.Fatal(err)
	}
	refused("the file itself, by way of a link", linkedDir+"/refused", syscall.EINVAL)
	fifo := j.path("fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	refused("a pipe", fifo, syscall.EINVAL)
	dir := j.path("dir")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	refused("a directory", dir, syscall.EISDIR)
	refused("in a directory that is not there", j.path("none/x~"), syscall.ENOENT)
	other := j.path("other")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", other, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("it takes the right to mount: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(other, unix.MNT_DETACH) })
	refused("on another file system", write(other+"/x~", "older"), syscall.EXDEV)

	file, backup := write(j.path("x"), "old"), write(j.path("x~"), "older")
	if err := save(file, backup); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(backup); err != nil || string(text) != "old" {
		t.Errorf("the backup has %q, %v", text, err)
	}
	linked := j.path("linked")
	if err := os.Link(file, linked); err != nil {
		t.Fatal(err)
	}
	want, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := save(file, linked); err != nil {
		t.Fatal(err)
	}
	got, err := os.Stat(linked)
	if err != nil || !os.SameFile(want, got) {
		t.Errorf("a backup that is another name of the file already: %v, %v", got, err)
	}
	j.goesOn(t)
}

func TestThroughAPipe(t *testing.T) {
	t.Parallel()
	need(t)
	j := begin(t, "count")
	var out bytes.Buffer
	j.save(t, func(o *Order) { o.File, o.Writer, o.Compress = "", &out, true })
	if !bytes.HasPrefix(out.Bytes(), zstdMagic) {
		t.Error("it is not compressed")
	}
	restart(t, Plan{Reader: &out})
	j.goesOn(t)
}

func TestCompressionHalves(t *testing.T) {
	t.Parallel()
	need(t)
	for _, c := range []struct {
		name  string
		begin func(*testing.T) *job
	}{
		{"Go", func(t *testing.T) *job { return begin(t, "threads") }},
		{"Python", func(t *testing.T) *job {
			if _, err := exec.LookPath("python3"); err != nil {
				if os.Getenv("LOCKERD_REQUIRE_CRIU") != "" {
					t.Fatal(err)
				}
				t.Skip("there is no Python to compress: ", err)
			}
			return shell(t, `exec python3 -c 'import time
words = {str(i): [i, str(i) * 3] for i in range(100000)}
print(len(repr(words)), flush=True)
time.sleep(1000)'`)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := c.begin(t)
			_, plain := j.save(t, func(o *Order) { o.Signal = 0 })
			_, packed := j.save(t, func(o *Order) { o.Signal, o.Compress = 0, true })
			t.Logf("%d bytes, with zstd %d", plain.Size, packed.Size)
			if packed.Size*2 > plain.Size {
				t.Errorf("%d bytes became %d", plain.Size, packed.Size)
			}
		})
	}
}

func TestTCP(t *testing.T) {
	t.Parallel()
	c := need(t)
	j := begin(t, "talk")
	_, err := Checkpoint(t.Context(), Order{Target: Tree(j.pid()), File: j.path("x"), CRIU: c})
	if e := (*Error)(nil); !errors.As(err, &e) || e.Errno != syscall.ENOTCONN || !strings.Contains(err.Error(), "open TCP connection") {
		t.Errorf("an open connection: %v", err)
	}
	j.goesOn(t)
	file, _ := j.save(t, func(o *Order) { o.TCP = TCPRestore })
	r := restart(t, Plan{File: file})
	j.goesOn(t)
	_ = r.Signal(syscall.SIGKILL)
	_, _ = r.Wait()

	k := begin(t, "talk")
	file, _ = k.save(t, func(o *Order) { o.TCP = TCPClose })
	restart(t, Plan{File: file})
	k.await(t, "it to notice the end of its connection", func() bool { return strings.Contains(strings.Join(k.lines(), "\n"), "closed") })
}

// A port that somebody has is free later, perhaps.
func TestATakenPortIsTemporary(t *testing.T) {
	t.Parallel()
	c := need(t)
	j := begin(t, "listen")
	address := j.lines()[0]
	file, r := j.save(t, func(o *Order) { o.Signal = 0 }) // it keeps its port
	_, err := Restart(t.Context(), Plan{File: file, NewPIDs: true, CRIU: c})
	if e := (*Error)(nil); !errors.As(err, &e) || e.Class != Temp || e.Errno != syscall.EADDRINUSE || err.Error() != "an address or a port that it had is in use here" {
		t.Errorf("the port is taken: %v", err)
	}
	if conn, err := net.Dial("tcp", address); err != nil {
		t.Error("it listens no more: ", err)
	} else {
		_ = conn.Close()
	}
	j.kill()
	var job *Job
	j.await(t, "its port to be free", func() bool {
		if job, err = Restart(t.Context(), Plan{File: file, CRIU: c}); errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EBUSY) {
			return false // another had been given its port, or its number
		}
		if err != nil {
			t.Fatal(err)
		}
		return true
	})
	t.Cleanup(func() {
		_ = job.Signal(syscall.SIGKILL)
		_, _ = job.Wait()
	})
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatalf("process %d does not listen at %s: %v", r.Manifest.Root, address, err)
	}
	_ = conn.Close()
}

// Who owns the directory of the file can rename ours in it, and put something else in its place.
func TestADirectoryOfAnotherUser(t *testing.T) {
	t.Parallel()
	c := need(t)
	j := begin(t, "count")
	theirs, victim := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(victim, "hers"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	stolen := ""
	swap := func() {
		found, _ := filepath.Glob(filepath.Join(theirs, boxPattern))
		if len(found) != 1 {
			t.Fatalf("there are %v", found)
		}
		stolen = filepath.Join(theirs, "stolen")
		if err := errors.Join(os.Rename(found[0], stolen), os.Symlink(victim, found[0])); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(theirs, "x")
	for _, sig := range []syscall.Signal{0, syscall.SIGKILL} {
		if _, err := Checkpoint(t.Context(), Order{Target: Tree(j.pid()), File: file, Signal: sig, CRIU: c, Copied: swap}); err != nil {
			t.Fatalf("signal %d: %v", sig, err)
		}
		if left, err := os.ReadDir(stolen); err != nil || len(left) > 0 {
			t.Errorf("signal %d: memory is left behind: %v, %v", sig, left, err)
		}
		if left, err := os.ReadDir(victim); err != nil || len(left) != 1 {
			t.Errorf("signal %d: behind the link there are %v, %v", sig, left, err)
		}
		if err := os.RemoveAll(stolen); err != nil {
			t.Fatal(err)
		}
		links, _ := filepath.Glob(filepath.Join(theirs, boxPattern))
		for _, l := range links {
			_ = os.Remove(l)
		}
	}
	_ = j.cmd.Wait()
	restart(t, Plan{File: file})
	j.goesOn(t)
}

// What has the name of a box and is none is not taken for one, and nothing in it is removed.
func TestWhatIsNoBox(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it takes root to give files to others")
	}
	dir := t.TempDir()
	other, open, full := filepath.Join(dir, ".checkpoint-1"), filepath.Join(dir, ".checkpoint-2"), filepath.Join(dir, ".checkpoint-3")
	like := filepath.Join(t.TempDir(), ".checkpoint-5")
	named := filepath.Join(dir, ".checkpoint-6")
	theirs, half := filepath.Join(dir, ".checkpoint-7"), filepath.Join(dir, ".checkpoint-8")
	link, target := filepath.Join(dir, ".checkpoint-4"), filepath.Join(dir, "target")
	err := errors.Join(
		os.Mkdir(other, 0o700), os.Chown(other, 65534, 65534),
		os.Mkdir(open, 0o700), os.Chmod(open, 0o777),
		os.Mkdir(full, 0o700), os.WriteFile(filepath.Join(full, "hers"), nil, 0o600),
		os.Mkdir(like, 0o700), os.WriteFile(filepath.Join(like, boxLock), nil, 0o600), os.WriteFile(filepath.Join(like, "hers"), nil, 0o600),
		os.Mkdir(named, 0o700), os.WriteFile(filepath.Join(named, boxLock), []byte("hers"), 0o600),
		os.Mkdir(theirs, 0o700), os.WriteFile(filepath.Join(theirs, boxLock), nil, 0o600), os.Chown(theirs, 65534, 65534),
		os.Mkdir(half, 0o700), os.WriteFile(filepath.Join(half, boxLock), nil, 0o600), os.Chown(filepath.Join(half, boxLock), 65534, 65534),
		os.Mkdir(target, 0o700), os.WriteFile(filepath.Join(target, boxLock), nil, 0o600), os.Symlink(target, link),
	)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{other, open, full} {
		if b, err := openBox(name); !errors.Is(err, errNotOurBox) {
			t.Errorf("%s: %v, %v", name, b, err)
		}
	}
	if b, err := openBox(link); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("a link: %v, %v", b, err)
	}
	if b, err := openBox(like); !errors.Is(err, syscall.EEXIST) {
		t.Errorf("one that has a lock: %v, %v", b, err)
	}
	Sweep(dir)
	for _, name := range []string{filepath.Join(full, "hers"), filepath.Join(like, "hers"), filepath.Join(like, boxLock), filepath.Join(named, boxLock), filepath.Join(target, boxLock), filepath.Join(theirs, boxLock), filepath.Join(half, boxLock)} {
		if !isThere(name) {
			t.Errorf("%s was removed", name)
		}
	}
}
