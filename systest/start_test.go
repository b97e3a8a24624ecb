package systest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockerd/lockerd/client"
	"github.com/lockerd/lockerd/systest/farm"
)

// environment is that of a node which listens at a, and of its clients.
func environment(a farm.Address, dir string) []string {
	return append(
		farm.Environ(),
		"LOCKERD_HOST="+a.Host, "LOCKERD_PEER="+a.Peer(), "LOCKERD_GOSSIP="+a.Gossip(), "LOCKERD_HTTP="+a.HTTP(),
		"LOCKERD_ADMIN=off", "LOCKERD_DATA_DIR="+dir, "IPCLOCKER_HOST="+a.Host, fmt.Sprint("IPCLOCKER_PORT=", a.Port),
	)
}

func address(t *testing.T) farm.Address {
	t.Helper()
	list, err := farm.Loopback(1)
	if err != nil {
		t.Fatal(err)
	}
	return list[0]
}

// busyCode is lockersh's exit status for a lock that it did not get.
const busyCode = 75

// exitCode is the status that a command ended with; -1 if it was not even run.
func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if e := (*exec.ExitError)(nil); errors.As(err, &e) {
		return e.ExitCode()
	}
	return -1
}

// lockerd without a single argument is a cluster of one, and what the manual of
// IPC::Locker shows works with it.
func TestTheManualsExample(t *testing.T) {
	a := address(t)
	env := environment(a, filepath.Join(t.TempDir(), "state", "lockerd"))
	ctx := limited(t, 2*time.Minute)
	var log bytes.Buffer
	node := exec.CommandContext(ctx, lockerd)
	node.Env, node.Stderr = env, &log
	node.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, node.Start())
	stopped := false
	defer func() {
		if !stopped {
			_ = node.Process.Kill()
			_ = node.Wait()
			t.Log(log.String())
		}
	}()
	await(t, granted, "the client port", func() error {
		w, err := dial(a.Client())
		if err == nil {
			err = w.Close()
		}
		return err
	})

	// What IPC::Locker->lock(lock => 'one_per_machine', timeout => 36000) sends.
	lock := "user host_1_amy\nlocks one_per_machine\nblock 1\ntimeout 36000\nLOCK"
	got, err := ask(a.Client(), lock, granted)
	if want := "owner host_1_amy\nlocked 1\nlockname one_per_machine\n\n\n"; err != nil || got != want {
		t.Fatalf("LOCK: %q, %v; want %q", got, err, want)
	}
	got, err = ask(a.Client(), "user host_1_amy\nlocks one_per_machine\nUNLOCK", granted)
	if want := "owner \nlocked 0\n\n\n"; err != nil || got != want {
		t.Fatalf("UNLOCK: %q, %v; want %q", got, err, want)
	}

	// The same with our own client, which finds the node by the environment.
	t.Setenv("IPCLOCKER_HOST", a.Host)
	t.Setenv("IPCLOCKER_PORT", fmt.Sprint(a.Port))
	l, err := client.Acquire(ctx, client.Options{Locks: []string{"one_per_machine"}})
	must(t, err)
	if !l.Locked() || l.Fence() == 0 {
		t.Errorf("locked %v, fence %d", l.Locked(), l.Fence())
	}

	// And from a shell.
	shell := func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, lockersh, args...)
		cmd.Env = env
		return cmd
	}
	refused := func(lock string) {
		t.Helper()
		out, err := shell("--lock", lock, "--try", "echo", "ran").Output()
		if code := exitCode(err); code != busyCode || len(out) != 0 {
			t.Errorf("lockersh for a lock that is held: status %d, %q; want %d and no command run", code, out, busyCode)
		}
	}
	refused("one_per_machine")
	if out, err := shell("--locklist").CombinedOutput(); err != nil || !strings.Contains(string(out), "one_per_machine") || !strings.Contains(string(out), l.User()) {
		t.Errorf("lockersh --locklist: %q, %v", out, err)
	}
	must(t, l.Unlock(ctx))
	if out, err := shell("--lock", "one_per_machine", "echo", "ran").CombinedOutput(); err != nil || string(out) != "ran\n" {
		t.Errorf("lockersh: %q, %v", out, err)
	}

	// The first example of lockersh's manual, to the letter.
	began := time.Now()
	sleeps := shell("--lock", "one_sleep_runs", "sleep", "10")
	must(t, sleeps.Start())
	await(t, granted, "the lock of the sleep", func() error {
		out, err := shell("--locklist").Output()
		if err == nil && !strings.HasPrefix(string(out), "one_sleep_runs ") {
			err = fmt.Errorf("listed: %q", out)
		}
		return err
	})
	refused("one_sleep_runs")
	if err := sleeps.Wait(); err != nil || time.Since(began) < 10*time.Second {
		t.Errorf("lockersh --lock one_sleep_runs sleep 10: %v after %v", err, time.Since(began))
	}
	if out, err := shell("--lock", "one_sleep_runs", "--try", "echo", "ran").CombinedOutput(); err != nil || string(out) != "ran\n" {
		t.Errorf("after the sleep: %q, %v", out, err)
	}

	must(t, node.Process.Signal(syscall.SIGTERM))
	stopped = true
	if err := node.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, log.String())
	}
}

// A node that cannot start says why in one line, and what to do.
func TestANodeThatCannotStart(t *testing.T) {
	// A data directory with a log in it, to be damaged.
	f := start(t, farm.Options{})
	f.Nodes[0].Kill()
	damaged := t.TempDir()
	must(t, os.CopyFS(damaged, os.DirFS(f.Nodes[0].DataDir())))
	files, err := os.ReadDir(damaged)
	must(t, err)
	log := ""
	for _, e := range files {
		if info, err := e.Info(); err == nil && info.Size() > 1<<14 {
			log = filepath.Join(damaged, e.Name())
		}
	}
	if log == "" {
		t.Fatalf("no log among %v", files)
	}
	must(t, os.WriteFile(log, bytes.Repeat([]byte("rubbish "), 1<<14), 0o600))

	foreign := t.TempDir()
	must(t, os.WriteFile(filepath.Join(foreign, "mail"), []byte("From: me"), 0o600))
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	config := filepath.Join(t.TempDir(), "lockerd.toml")
	must(t, os.WriteFile(config, []byte("name = \"n\"\nhots = \"x\"\n"), 0o600))

	a := address(t)
	taken, err := net.Listen("tcp", net.JoinHostPort(a.Host, "0"))
	must(t, err)
	defer taken.Close()
	port := fmt.Sprint(taken.Addr().(*net.TCPAddr).Port)
	socket := filepath.Join(t.TempDir(), "admin")
	admin, err := net.Listen("unix", socket)
	must(t, err)
	defer admin.Close()

	for _, c := range []struct {
		name string
		args []string
		code int // 0 = any but 0
		want []string
	}{
		{"damaged log", []string{"--data-dir", damaged}, 0, []string{damaged, "damaged"}},
		{"foreign directory", []string{"--data-dir", foreign}, 0, []string{foreign, "not a lockerd data directory"}},
		{"a file for a directory", []string{"--data-dir", file}, 0, []string{file, "not a directory"}},
		{"unwritable directory", []string{"--data-dir", "/proc/lockerd"}, 0, []string{"/proc/lockerd", "--data-dir"}},
		{"client port in use", []string{"--port", port}, 98, []string{port, "in use", "--port"}},
		{"peer port in use", []string{"--peer", taken.Addr().String()}, 98, []string{port, "in use", "give another"}},
		{"gossip port in use", []string{"--gossip", taken.Addr().String()}, 98, []string{port, "in use", "give another"}},
		{"HTTP port in use", []string{"--http", taken.Addr().String()}, 98, []string{port, "in use", "give another"}},
		{"admin socket in use", []string{"--admin", socket}, 98, []string{socket, "in use", "--admin"}},
		{"address of another host", []string{"--host", "192.0.2.1"}, 0, []string{"192.0.2.1", "--host"}},
		{"join without a port", []string{"--join", "nowhere"}, 64, []string{"--join nowhere", "host:port"}},
		{"join with a name that is none", []string{"--join", "no.such.host.invalid:1754"}, 0, []string{"no.such.host.invalid"}},
		{"agent without servers", []string{"--agent"}, 64, []string{"--join"}},
		{"off loopback", []string{"--peer", "0.0.0.0:0"}, 64, []string{"--insecure"}},
		{"unknown key", []string{"--config", config}, 64, []string{config + ", line 2", "hots"}},
		{"unknown option", []string{"--jion", "x:1"}, 64, []string{"--jion", "--help"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			node := exec.CommandContext(ctx, lockerd, c.args...)
			// In a container there is a warning, too, if this is left to itself.
			node.Env = append(environment(a, filepath.Join(t.TempDir(), "data")), "LOCKERD_PIDSTAT_PORT=off")
			var out, errs bytes.Buffer
			node.Stdout, node.Stderr = &out, &errs
			err := node.Run()
			if ctx.Err() != nil {
				t.Fatalf("it runs: %s", errs.String())
			}
			if err == nil {
				t.Fatal("exit 0")
			}
			if code := node.ProcessState.ExitCode(); code < 1 || c.code != 0 && code != c.code {
				t.Errorf("exit %d, want %d", code, c.code)
			}
			text := errs.String()
			if strings.Count(text, "\n") != 1 || !strings.HasPrefix(text, "lockerd: ") || out.Len() > 0 {
				t.Errorf("not one line on stderr: %q, %q", text, out.String())
			}
			for _, w := range c.want {
				if !strings.Contains(text, w) {
					t.Errorf("%q does not say %q", text, w)
				}
			}
			if strings.Contains(text, "goroutine ") || strings.Contains(text, "panic") {
				t.Errorf("a stack trace: %s", text)
			}
		})
	}
}
