package job

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestSpawn(t *testing.T) {
	dir := t.TempDir()
	bare := filepath.Join(dir, "bare") // a script that does not say who reads it
	if err := os.WriteFile(bare, []byte("read a b c d e f rest </proc/$$/stat; echo $a $e $f; exit 3\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	pid, err := Spawn([]string{bare}, [3]*os.File{null, out, out})
	if err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil || status.ExitStatus() != 3 {
		t.Errorf("it ended with %v, %v", status, err)
	}
	text, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	own := strconv.Itoa(pid)
	if got := strings.Fields(string(text)); len(got) != 3 || got[0] != own || got[1] != own || got[2] != own {
		t.Errorf("process, group and session of %s are %q", own, got)
	}
	for name, code := range map[string]int{"no-such-command": CodeNotFound, dir + "/none": CodeNotFound, dir: CodeNotExecutable} {
		if _, err := Spawn([]string{name}, [3]*os.File{null, out, out}); err == nil || StartCode(err) != code {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Find([]string{"no-such-command"}); err == nil || StartCode(err) != CodeNotFound {
		t.Error(err)
	}
	if err := Find([]string{"sh"}); err != nil {
		t.Error(err)
	}
}
