package main

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

func TestAdminSocketDefault(t *testing.T) {
	for _, c := range []struct {
		uid  int
		env  []string
		want string
	}{
		{0, nil, "/run/lockerd/admin.sock"},
		{0, []string{"RUNTIME_DIRECTORY", "/run/l:/run/other"}, "/run/l/admin.sock"},
		{7, []string{"RUNTIME_DIRECTORY", "/run/lockerd", "XDG_RUNTIME_DIR", "/run/user/7"}, "/run/lockerd/admin.sock"},
		{7, []string{"XDG_RUNTIME_DIR", "/run/user/7"}, "/run/user/7/lockerd/admin.sock"},
		{7, []string{"XDG_RUNTIME_DIR", "here"}, off},
		{7, nil, off},
	} {
		if got := adminSocket(c.uid, env(c.env...)); got != c.want {
			t.Errorf("%d %v: %q, want %q", c.uid, c.env, got, c.want)
		}
	}
}

func TestAdminSocketInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin")
	listen := func(set map[string]string) (a *adminPort, log string, err error) {
		var text strings.Builder
		o := &options{admin: path, set: set}
		a, err = o.listenAdmin(hclog.New(&hclog.LoggerOptions{Output: &text}))
		return a, text.String(), err
	}
	given := map[string]string{"admin": "--admin"}
	first, _, err := listen(given)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, _, err := listen(given); err == nil || !strings.Contains(err.Error(), "from --admin; off is for none") {
		t.Errorf("a second node on the same socket: %v", err)
	}
	// Not asked for: the node goes without.
	if a, log, err := listen(nil); a != nil || err != nil || !strings.Contains(log, "[WARN]") {
		t.Errorf("%v, %v, logged %q", a, err, log)
	}
}

// Who is connected goes on when others are frozen, with its children and theirs.
func TestSpared(t *testing.T) {
	var none *adminPort
	if got := none.spared(); got != nil {
		t.Errorf("without a socket: %v", got)
	}
	o := &options{admin: filepath.Join(t.TempDir(), "admin"), set: map[string]string{}}
	a, err := o.listenAdmin(hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan []int)
	web := &http.Server{ConnState: a.note, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked <- a.spared() })}
	go web.Serve(a.Listener)
	defer web.Close()

	child := exec.Command("sh", "-c", "sleep 1000 & echo $!; wait")
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		syscall.Kill(-child.Process.Pid, syscall.SIGKILL)
		child.Wait()
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", o.admin)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "GET / HTTP/1.0\r\n\r\n")
	got := <-asked
	grandchild, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []int{os.Getpid(), child.Process.Pid, grandchild} {
		if !slices.Contains(got, want) {
			t.Errorf("%d is not of %v", want, got)
		}
	}
	if slices.Contains(got, os.Getppid()) {
		t.Errorf("%v has the parent of who is connected: the executor knows it", got)
	}
	c.Close()
	for end := time.Now().Add(20 * time.Second); len(a.spared()) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("nobody is connected: %v", a.spared())
		}
	}
}

// Names of processes may have anything in them.
func TestChildren(t *testing.T) {
	proc := t.TempDir()
	for pid, stat := range map[string]string{
		"1": "1 (init) S 0 1 1 0", "7": "7 (a) b) (c 9 9) S 1 7 7 0", "8": "8 (x) S 7 8 8 0", "9": "9 (y) Z 8", "10": "10 (", "11": "",
	} {
		if err := os.Mkdir(filepath.Join(proc, pid), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(proc, pid, "stat"), []byte(stat), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got := descendants([]int{7, 0, 8, 99}, children(proc))
	slices.Sort(got)
	if !slices.Equal(got, []int{7, 8, 9, 99}) {
		t.Errorf("%v", got)
	}
}
