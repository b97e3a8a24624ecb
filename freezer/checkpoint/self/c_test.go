package self

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lockerd/lockerd/freezer/checkpoint"
)

// The example in the documentation is one that works.
func TestExampleInC(t *testing.T) {
	t.Parallel()
	need(t)
	program := filepath.Join(t.TempDir(), "count")
	out, err := exec.Command("gcc", "-Wall", "-Wextra", "-Werror", "-o", program, "../../../docs/examples/checkpoint.c").CombinedOutput()
	if err != nil {
		t.Fatalf("compile it: %v\n%s", err, out)
	}
	j := serve(t, Options{}, 0)
	cmd := exec.Command(program, j.path("count.ckpt"))
	cmd.Env = append(os.Environ(), SocketVariable+"="+j.socket)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	j.run(t, cmd)
	if err := cmd.Wait(); err != nil || j.out() != "1\n2\n3\nsaved\n4\n5\n6\n" {
		t.Fatalf("it ended with %v and said\n%s", err, j.out())
	}
	job, err := checkpoint.Restart(t.Context(), checkpoint.Plan{File: j.path("count.ckpt")})
	if err != nil {
		t.Fatal(err)
	}
	status, err := job.Wait()
	if _, more, _ := strings.Cut(j.out(), "6\n"); err != nil || status != 0 || more != "restarted\n4\n5\n6\n" {
		t.Errorf("the restart ended with %v, %v and said\n%s", status, err, j.out())
	}

	cmd = exec.Command(program, j.path("none/count.ckpt"))
	cmd.Env = append(os.Environ(), SocketVariable+"="+j.socket)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	j.run(t, cmd)
	if err := cmd.Wait(); err == nil || !strings.HasSuffix(j.out(), "checkpoint: No such file or directory\n") {
		t.Errorf("without a directory it ended with %v and said\n%s", err, j.out())
	}
}
