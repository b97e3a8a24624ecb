package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/lockerd/lockerd/pidprobe"
)

// freeUDP is a UDP port of loopback that was free a moment ago, and below those that the
// kernel gives to whoever asks for any, as other tests do all the time.
func freeUDP(t *testing.T) string {
	t.Helper()
	for {
		conn, err := net.ListenPacket("udp", fmt.Sprint("127.0.0.1:", 20_000+rand.IntN(10_000)))
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return port(conn)
	}
}

func port(conn net.PacketConn) string { return fmt.Sprint(conn.LocalAddr().(*net.UDPAddr).Port) }

// ask is pidstat: it does not take 127.0.0.1 for this host.
func ask(t *testing.T, port string, pid int) (pidprobe.Verdict, error) {
	t.Helper()
	n, err := pidprobe.Port(t.Context(), port)
	if err != nil {
		t.Fatal(err)
	}
	c := pidprobe.Client{Port: n}
	return c.Exists(t.Context(), "127.0.0.1", int32(pid))
}

func TestPidstat(t *testing.T) {
	for _, form := range []string{"flag", "environment", "file"} {
		t.Run(form, func(t *testing.T) {
			want := freeUDP(t)
			var cmd *exec.Cmd
			switch form {
			case "flag":
				cmd = command(t, "--pidstat-port", want)
			case "environment":
				cmd = without(command(t), "--pidstat-port")
				cmd.Env = append(cmd.Env, "LOCKERD_PIDSTAT_PORT="+want)
			case "file":
				cmd = without(command(t, "--config", configFile(t, "pidstat-port = "+want+"\n")), "--pidstat-port")
			}
			d := start(t, cmd)
			line := d.logged("serving")
			if got := field(line, "pidstat"); got != "127.0.0.1:"+want {
				t.Fatalf("it says pidstat=%s, want port %s", got, want)
			}
			p := exec.Command("cat")
			if err := p.Start(); err != nil { // ends at once: its input is empty
				t.Fatal(err)
			}
			if err := p.Wait(); err != nil {
				t.Fatal(err)
			}
			for pid, verdict := range map[int]pidprobe.Verdict{os.Getpid(): pidprobe.Alive, p.Process.Pid: pidprobe.Dead} {
				if v, err := ask(t, want, pid); v != verdict || err != nil {
					t.Errorf("process %d is %v, %v; want %v", pid, v, err, verdict)
				}
			}
			cmd.Process.Signal(syscall.SIGTERM)
			if code := d.end(); code != 0 {
				t.Errorf("exit code %d:\n%s", code, strings.Join(d.seen, "\n"))
			}
			if v, err := ask(t, want, os.Getpid()); err == nil {
				t.Errorf("after the node's end it answers %v", v)
			}
		})
	}
}

// without takes an option with its value off a command line.
func without(cmd *exec.Cmd, option string) *exec.Cmd {
	for i, a := range cmd.Args {
		if a == option {
			cmd.Args = append(cmd.Args[:i:i], cmd.Args[i+2:]...)
			return cmd
		}
	}
	return cmd
}

// With the command line of before there was the option, a pidstatd that runs on the
// host goes before.
func TestPidstatPortInUse(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a network namespace, where the usual port is ours, takes root")
	}
	if !strings.HasSuffix(pidprobe.Here(), hostNamespace) {
		t.Skip("without the option nothing is served in a container, as this is one")
	}
	// The first node has the port, the second finds it taken.
	first := command(t)
	first.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	first = without(first, "--pidstat-port")
	first.Args = append([]string{"sh", "-c", `ip link set lo up && exec "$0" "$@"`}, first.Args...)
	first.Path = "/bin/sh"
	a := start(t, first)
	if got := field(a.logged("serving"), "pidstat"); got != "127.0.0.1:1752" {
		t.Fatalf("the first node serves pidstat on %s", got)
	}
	inside := func(args ...string) *exec.Cmd {
		cmd := without(command(t, args...), "--pidstat-port")
		cmd.Args = append([]string{"nsenter", "-n", "-t", fmt.Sprint(first.Process.Pid)}, cmd.Args...)
		var err error
		if cmd.Path, err = exec.LookPath("nsenter"); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	second := inside()
	b := start(t, second)
	b.logged("serving")
	b.logged("in office")
	all := strings.Join(b.seen, "\n")
	if n := strings.Count(all, "[WARN]  lockerd: this node leaves pidstat's questions"); n != 1 || !strings.Contains(all, "pidstat=off") {
		t.Errorf("%d warnings:\n%s", n, all)
	}
	second.Process.Signal(syscall.SIGTERM)
	if code := b.end(); code != 0 {
		t.Errorf("exit code %d", code)
	}

	third := inside()
	third.Args = append(third.Args, "--pidstat-port", "1752")
	out, _ := third.CombinedOutput()
	if code := third.ProcessState.ExitCode(); code != exitInUse {
		t.Errorf("told to have the port, it exits with %d: %s", code, out)
	}
	if s := string(out); strings.Count(s, "\n") != 1 || !strings.Contains(s, "does a pidstatd or another lockerd run here?") || !strings.Contains(s, "leave --pidstat-port out") {
		t.Errorf("told to have the port, it says %s", s)
	}
}

func TestPidstatPortMistakes(t *testing.T) {
	busy, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for _, c := range []struct {
		args, env []string
		bad       string // in the error
	}{
		{args: []string{"--pidstat-port", "x!"}, bad: `--pidstat-port: port "x!" is neither a number nor a UDP service`},
		{args: []string{"--pidstat-port", "65536"}, bad: "--pidstat-port: port 65536: numbers go from 1 to 65535, or 0 for none"},
		{env: []string{"LOCKERD_PIDSTAT_PORT", "-1"}, bad: "LOCKERD_PIDSTAT_PORT: port"},
		{args: []string{"--pidstat-port", port(busy)}, bad: "leave --pidstat-port out"},
		{env: []string{"LOCKERD_PIDSTAT_PORT", port(busy)}, bad: "leave LOCKERD_PIDSTAT_PORT out"},
		{args: []string{"--host", "192.0.2.77", "--pidstat-port", "7777"}, bad: "cannot assign requested address"},
		{args: []string{"--pidstat-port", "0"}},
		{args: []string{"--pidstat-port", "off"}},
		{args: []string{"--host", "192.0.2.77"}}, // without the option, a warning
	} {
		o, _, err := parse(c.args, env(c.env...))
		if err != nil {
			t.Fatal(err)
		}
		var logged strings.Builder
		var conn *net.UDPConn
		port, err := o.pidstatPort(t.Context())
		if off := slices.Contains(c.args, "0") || slices.Contains(c.args, "off"); err == nil && off != (port == 0) {
			t.Errorf("%q %q: port %d", c.args, c.env, port)
		}
		if asked := o.cluster(listeners{pidstatPort: port}, nil).PidstatPort; err == nil && (asked < 0) != (port == 0) {
			t.Errorf("%q %q: others are asked on port %d", c.args, c.env, asked)
		}
		if err == nil && port != 0 {
			conn, err = o.listenPidstat(t.Context(), port, "boot"+hostNamespace, hclog.New(&hclog.LoggerOptions{Output: io.Writer(&logged)}))
		}
		switch {
		case conn != nil:
			conn.Close()
			t.Errorf("%q %q: it listens", c.args, c.env)
		case c.bad == "" && err != nil, c.bad != "" && (err == nil || !strings.Contains(err.Error(), c.bad)):
			t.Errorf("%q %q: %v, want %q", c.args, c.env, err, c.bad)
		case (logged.Len() > 0) != (err == nil && len(c.args) > 0 && c.args[0] == "--host"):
			t.Errorf("%q %q: logged %q", c.args, c.env, logged.String())
		}
	}
}

// In a container the node answers only if it is told to.
func TestPidstatInContainer(t *testing.T) {
	free := freeUDP(t)
	for _, c := range []struct {
		args    []string
		here    string
		listens bool
	}{
		{nil, "boot/4026532000", false},
		{nil, "boot", false},
		{nil, "", false},
		{[]string{"--pidstat-port", free}, "boot/4026532000", true},
		{[]string{"--pidstat-port", free}, "boot" + hostNamespace, true},
	} {
		o, _, err := parse(c.args, env())
		if err != nil {
			t.Fatal(err)
		}
		var logged strings.Builder
		port, err := o.pidstatPort(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		conn, err := o.listenPidstat(t.Context(), port, c.here, hclog.New(&hclog.LoggerOptions{Output: io.Writer(&logged)}))
		if conn != nil {
			conn.Close()
		}
		if err != nil || (conn != nil) != c.listens || strings.Contains(logged.String(), "[WARN]") == c.listens {
			t.Errorf("%q in %s: listens %v, %v; logged %q", c.args, c.here, conn != nil, err, logged.String())
		}
	}
}

// What is served stops when it is told to, whatever it is doing.
func TestServePidstatStops(t *testing.T) {
	servePidstat(nil, hclog.NewNullLogger())()
	conn, err := pidprobe.Listen(context.Background(), "127.0.0.1", 0)
	if err != nil {
		t.Fatal(err)
	}
	stop := servePidstat(conn, hclog.NewNullLogger())
	if v, err := ask(t, port(conn), os.Getpid()); v != pidprobe.Alive || err != nil {
		t.Errorf("%v, %v", v, err)
	}
	ended := make(chan struct{})
	go func() {
		stop()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("it goes on")
	}
}
