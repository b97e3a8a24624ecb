package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockerd/lockerd/pidprobe"
)

// remote is another host: a network namespace with a pidstatd, behind a wire.
type remote struct {
	t     *testing.T
	space string
	far   string // its address
}

var remotes atomic.Int32

func newRemote(t *testing.T) *remote {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a network namespace takes root")
	}
	id := os.Getpid()*8 + int(remotes.Add(1)&7) // several at a time, and of other tests
	r := &remote{t: t, space: fmt.Sprintf("pidwatch-%d", id), far: fmt.Sprintf("198.%d.%d.%d", 18+id>>14&1, id>>6&255, id<<2&255|2)}
	near := fmt.Sprintf("198.%d.%d.%d", 18+id>>14&1, id>>6&255, id<<2&255|1)
	wire, end := fmt.Sprintf("pw%dn", id), fmt.Sprintf("pw%df", id)
	r.ip("netns", "add", r.space)
	t.Cleanup(func() { r.ip("netns", "del", r.space) })
	r.ip("link", "add", wire, "type", "veth", "peer", "name", end, "netns", r.space)
	r.ip("addr", "add", near+"/30", "dev", wire)
	t.Cleanup(func() { r.ip("link", "del", wire) }) // the namespace takes its time
	r.ip("link", "set", wire, "up")
	r.ip("-n", r.space, "addr", "add", r.far+"/30", "dev", end)
	r.ip("-n", r.space, "link", "set", end, "up")
	r.ip("-n", r.space, "link", "set", "lo", "up")
	return r
}

func (r *remote) ip(args ...string) {
	r.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		r.t.Fatalf("ip %v: %v %s", args, err, out)
	}
}

// pidstatd starts one there.
func (r *remote) pidstatd() *exec.Cmd {
	r.t.Helper()
	cmd, _ := r.serve("pidstatd")
	return cmd
}

// serve starts the test binary there, as what serveAs knows.
func (r *remote) serve(kind string) (*exec.Cmd, *bufio.Reader) {
	r.t.Helper()
	cmd := r.command(os.Args[0])
	cmd.Env = append(os.Environ(), "PIDWATCH_TEST_MAIN="+kind, "PIDWATCH_TEST_ADDRESS="+r.far)
	out, err := cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	return cmd, r.start(cmd, out, "serving\n")
}

func (r *remote) command(args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", r.space}, args...)...)
}

// start starts a program, and returns what comes after the line that says text.
func (r *remote) start(cmd *exec.Cmd, out io.Reader, text string) *bufio.Reader {
	r.t.Helper()
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { end(cmd) })
	in := bufio.NewReader(out)
	for said := ""; ; {
		line, err := in.ReadString('\n')
		said += line
		if err != nil {
			r.t.Fatalf("%v says %q, %v", cmd.Args, said, err)
		}
		if strings.Contains(line, text) {
			return in
		}
	}
}

// reactions are the times from the end of a process until the command ends that
// is to end with it.
func (r *remote) reactions(n int) []time.Duration {
	r.t.Helper()
	watched, cmds := make([]*exec.Cmd, n), make([]*exec.Cmd, n)
	for i := range n {
		watched[i] = sleeper(r.t)
		cmds[i] = command(r.t, "--host", r.far, "--pid", pidOf(watched[i]), "echo up; exec sleep 9999999")
		running(r.t, cmds[i])
	}
	took := make([]time.Duration, n)
	for i, cmd := range cmds {
		time.Sleep(110 * time.Millisecond) // each at another time after its questions
		if v := pidprobe.Check(pidprobe.Process{PID: int32(cmd.Process.Pid)}); v != pidprobe.Alive {
			r.t.Fatalf("command %d is %v before its time", i, v)
		}
		began := time.Now()
		end(watched[i])
		r.wait(cmd)
		took[i] = time.Since(began)
		if got := status(cmd); got != 129 {
			r.t.Errorf("command %d: exit %d after %v", i, got, took[i])
		}
	}
	slices.Sort(took)
	r.t.Logf("from the process's end to the command's: %v", took)
	return took
}

// wait waits for a command, but not for ever.
func (r *remote) wait(cmd *exec.Cmd) {
	r.t.Helper()
	late := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	_ = cmd.Wait()
}

// Network namespaces have no process numbers of their own, so that one started
// here is one of the host there.
func TestRemoteHost(t *testing.T) {
	dir := t.TempDir()
	for name, serve := range map[string]func(r *remote){
		"pidstatd": func(r *remote) {
			cmd := r.command(build(t, dir, "pidstatd"), "--nofork")
			out, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			r.start(cmd, out, "serving on")
		},
		"lockerd": func(r *remote) {
			cmd := r.command(build(t, dir, "lockerd"), "--host", r.far, "--port", "0", "--gossip", "off", "--http", "off",
				"--peer", "127.0.0.1:0", "--data-dir", t.TempDir(), "--name", "n1", "--pidstat-port", "1752", "--admin", "off")
			out, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			in := r.start(cmd, out, "pidstat="+r.far+":1752")
			go func() { _, _ = io.Copy(io.Discard, in) }()
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRemote(t)
			serve(r)
			// A question a second alone makes half a second of it. Others may keep the
			// processors busy for a while.
			var median time.Duration
			for range 3 {
				took := r.reactions(9)
				if median = took[len(took)/2]; median < 250*time.Millisecond {
					return
				}
			}
			t.Errorf("half of them took more than %v: somebody polls", median)
		})
	}
}

// build makes a program of this module.
func build(t *testing.T, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if out, err := exec.Command("go", "build", "-o", path, "../"+name).CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v %s", name, err, out)
	}
	return path
}

// IPC::Locker's pidstatd tells nothing by itself.
func TestRemoteOldPidstatd(t *testing.T) {
	r := newRemote(t)
	r.serve("old pidstatd")
	took := r.reactions(4)
	if last := took[len(took)-1]; last > 15*time.Second {
		t.Errorf("it took %v", last)
	}
}

func TestRemotePushesLost(t *testing.T) {
	r := newRemote(t)
	_, out := r.serve("pidstatd without pushes")
	took := r.reactions(4)
	if last := took[len(took)-1]; last > 15*time.Second {
		t.Errorf("it took %v", last)
	}
	for range took {
		if line, err := out.ReadString('\n'); !strings.HasPrefix(line, "lost UNKN ") {
			t.Fatalf("nothing was lost: %q, %v", line, err)
		}
	}
}

// A server that is started anew knows nothing of who wanted to be told.
func TestRemoteRestart(t *testing.T) {
	for _, kind := range []string{"pidstatd", "old pidstatd"} {
		t.Run("as "+kind, func(t *testing.T) {
			r := newRemote(t)
			first := r.pidstatd()
			p := sleeper(t)
			cmd := command(t, "--host", r.far, "--pid", pidOf(p), "echo up; exec sleep 9999999")
			running(t, cmd)
			time.Sleep(300 * time.Millisecond) // it has been promised to be told
			end(first)
			r.serve(kind)
			began := time.Now()
			end(p)
			r.wait(cmd)
			if got, took := status(cmd), time.Since(began); got != 129 || took > 15*time.Second {
				t.Errorf("exit %d after %v", got, took)
			}
		})
	}
}

// As long as nobody there answers, nothing is certain.
func TestRemoteHostOutOfReach(t *testing.T) {
	r := newRemote(t)
	p := sleeper(t)
	first := r.pidstatd()
	cmd := command(t, "--host", r.far, "--pid", pidOf(p), "echo up; exec sleep 9999999")
	running(t, cmd)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	end(first)
	end(p)
	select {
	case <-ended:
		t.Fatalf("the command has been ended without word from the other host: %d", status(cmd))
	case <-time.After(2500 * time.Millisecond): // more than two questions
	}
	r.pidstatd()
	select {
	case <-ended:
		if got := status(cmd); got != 129 {
			t.Errorf("exit %d", got)
		}
	case <-time.After(time.Minute):
		t.Error("the command goes on though the other host answers")
	}
}
