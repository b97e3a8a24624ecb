package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

// remote is another host: a network namespace with a pidstatd, behind a wire.
type remote struct {
	t     *testing.T
	space string
	far   string // its address
}

func newRemote(t *testing.T) *remote {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a network namespace takes root")
	}
	id := os.Getpid()
	r := &remote{t: t, space: fmt.Sprintf("pidwatch-%d", id), far: fmt.Sprintf("198.18.%d.%d", id>>6&255, id<<2&255|2)}
	near := fmt.Sprintf("198.18.%d.%d", id>>6&255, id<<2&255|1)
	wire, end := fmt.Sprintf("pw%dn", id), fmt.Sprintf("pw%df", id)
	r.ip("netns", "add", r.space)
	t.Cleanup(func() { r.ip("netns", "del", r.space) })
	r.ip("link", "add", wire, "type", "veth", "peer", "name", end, "netns", r.space)
	r.ip("addr", "add", near+"/30", "dev", wire)
	t.Cleanup(func() { r.ip("link", "del", wire) }) // the namespace takes its time
	r.ip("link", "set", wire, "up")
	r.ip("-n", r.space, "addr", "add", r.far+"/30", "dev", end)
	r.ip("-n", r.space, "link", "set", end, "up")
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
	cmd := exec.Command("ip", "netns", "exec", r.space, os.Args[0])
	cmd.Env = append(os.Environ(), "PIDWATCH_TEST_MAIN=pidstatd")
	out, err := cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { end(cmd) })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "serving\n" {
		r.t.Fatalf("pidstatd says %q, %v", line, err)
	}
	return cmd
}

// Network namespaces have no process numbers of their own, so that one started
// here is one of the host there.
func TestRemoteHost(t *testing.T) {
	r := newRemote(t)
	r.pidstatd()
	p := sleeper(t)
	cmd := command(t, "--host", r.far, "--pid", pidOf(p), "echo up; exec sleep 9999999")
	running(t, cmd)
	end(p)
	began := time.Now()
	_ = cmd.Wait()
	if got, took := status(cmd), time.Since(began); got != 129 || took > 4*time.Second {
		t.Errorf("exit %d after %v", got, took)
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
	case <-time.After(10 * time.Second):
		t.Error("the command goes on though the other host answers")
	}
}
