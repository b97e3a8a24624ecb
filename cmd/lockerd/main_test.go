package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the test binary be lockerd.
func TestMain(m *testing.M) {
	if os.Getenv("LOCKERD_TEST_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

// daemon is a lockerd of its own process.
type daemon struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan string // of its log
	seen  []string
}

// command makes a lockerd on free ports of loopback; args override.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	base := []string{
		"--port", "0", "--pidstat-port", "0", "--peer", "127.0.0.1:0", "--gossip", "127.0.0.1:0", "--http", "127.0.0.1:0", "--admin", "off",
		"--data-dir", filepath.Join(t.TempDir(), "data"), "--name", "n1",
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], append(base, args...)...)
	cmd.Env = append(os.Environ(), "LOCKERD_TEST_MAIN=1")
	return cmd
}

func start(t *testing.T, cmd *exec.Cmd) *daemon {
	t.Helper()
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d := &daemon{t: t, cmd: cmd, lines: make(chan string, 10_000)}
	go func() {
		defer close(d.lines)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			d.lines <- sc.Text()
		}
	}()
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	return d
}

// logged waits for a line of the log that contains text, if none was there yet.
func (d *daemon) logged(text string) string {
	d.t.Helper()
	for _, line := range d.seen {
		if strings.Contains(line, text) {
			return line
		}
	}
	timeout := time.After(20 * time.Second)
	for {
		select {
		case line, ok := <-d.lines:
			if !ok {
				d.t.Fatalf("it ended without saying %q:\n%s", text, strings.Join(d.seen, "\n"))
			}
			d.seen = append(d.seen, line)
			if strings.Contains(line, text) {
				return line
			}
		case <-timeout:
			d.t.Fatalf("it did not say %q:\n%s", text, strings.Join(d.seen, "\n"))
		}
	}
}

// end waits for the process and gives its exit code.
func (d *daemon) end() int {
	for line := range d.lines {
		d.seen = append(d.seen, line)
	}
	d.cmd.Wait()
	return d.cmd.ProcessState.ExitCode()
}

func field(line, name string) string {
	m := regexp.MustCompile(name + `=(\S+)`).FindStringSubmatch(line)
	if m == nil {
		return ""
	}
	return m[1]
}

func TestDaemonLife(t *testing.T) {
	notices, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notices.Close()
	notices.SetReadDeadline(time.Now().Add(30 * time.Second))
	told := func() string {
		b := make([]byte, 100)
		n, err := notices.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	cmd := command(t)
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+notices.LocalAddr().String())
	d := start(t, cmd)
	line := d.logged("serving")
	if s := told(); s != "READY=1\n" {
		t.Errorf("systemd was told %q", s)
	}
	d.logged("in office")
	resp, err := http.Get("http://" + field(line, "http") + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("readyz: %d %s", resp.StatusCode, body)
	}
	c, err := net.Dial("tcp", field(line, "clients"))
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(c, "user u\nlock a\nblock 1\nLOCK\nEOF\n")
	if answer, _ := io.ReadAll(c); !strings.Contains(string(answer), "locked 1") {
		t.Errorf("LOCK was answered %q", answer)
	}
	c.Close()

	cmd.Process.Signal(syscall.SIGHUP)
	d.logged("SIGHUP ignored")
	began := time.Now()
	cmd.Process.Signal(syscall.SIGTERM)
	if code := d.end(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, strings.Join(d.seen, "\n"))
	}
	if took := time.Since(began); took > 3*stopTime {
		t.Errorf("it took %v to stop", took)
	}
	if s := told(); s != "STOPPING=1\n" {
		t.Errorf("systemd was told %q", s)
	}
}

func TestExitCodes(t *testing.T) {
	d := start(t, command(t))
	line := d.logged("serving")
	_, port, _ := net.SplitHostPort(field(line, "clients"))
	dir := t.TempDir()
	busy := filepath.Join(dir, "busy")
	ln, err := net.Listen("unix", busy)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	plain := filepath.Join(dir, "file")
	if err := os.WriteFile(plain, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"--port " + port, 98, "address already in use"},
		{"--http " + field(line, "http"), 98, "give another port with --http"},
		{"--path " + busy, 98, "--path"},
		{"--path " + plain, 69, "not a socket"},
		{"--path " + dir + "/" + strings.Repeat("x", 120), 69, "107 bytes"},
		{"--data-dir " + field(line, "data"), 69, "lockerd: "},
		{"--data-dir " + plain, 69, "--data-dir"},
		{"--host 192.0.2.77", 69, "cannot assign requested address"},
		{"--bogus", 64, "unknown option --bogus"},
		{"--agent", 64, "--join"},
	} {
		cmd := command(t, strings.Fields(c.args)...)
		out, _ := cmd.CombinedOutput()
		// Raft may have logged before the error; the error is the last line.
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		last := lines[len(lines)-1]
		if code := cmd.ProcessState.ExitCode(); code != c.code {
			t.Errorf("%s: exit code %d, want %d: %s", c.args, code, c.code, out)
		}
		if !strings.HasPrefix(last, "lockerd: ") || !strings.Contains(last, c.want) {
			t.Errorf("%s: said %q, want %q", c.args, last, c.want)
		}
	}
	if b, _ := os.ReadFile(plain); string(b) != "mine" {
		t.Error("a file that was no socket was touched")
	}
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	first := start(t, command(t, "--path", path))
	first.logged("serving")
	first.cmd.Process.Kill() // leaves its socket behind
	first.end()
	second := start(t, command(t, "--path", path))
	second.logged("serving")
	fi, err := os.Stat(path)
	if err != nil || fi.Mode().Perm() != 0o777 {
		t.Errorf("socket %v, %v: want one for everybody", fi, err)
	}
	second.cmd.Process.Signal(syscall.SIGINT)
	if code := second.end(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket is still there after an orderly stop")
	}
}

func TestHelpAndVersion(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for arg, want := range map[string]string{"--help": "Exit status:", "--version": "Version: " + version + "\n", "-vers": "Version: "} {
		cmd := exec.CommandContext(ctx, os.Args[0], arg)
		cmd.Env = append(os.Environ(), "LOCKERD_TEST_MAIN=1")
		out, err := cmd.Output()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v, %.80q", arg, err, out)
		}
	}
}

func TestNotifyAbstractSocket(t *testing.T) {
	name := "@lockerd-test-" + filepath.Base(t.TempDir()) + "-" + t.Name()
	ln, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if err := notify(name, "READY=1\n"); err != nil {
		t.Fatal(err)
	}
	ln.SetReadDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 100)
	if n, err := ln.Read(b); err != nil || string(b[:n]) != "READY=1\n" {
		t.Errorf("got %q, %v", b[:n], err)
	}
	if notify("", "READY=1\n") != nil {
		t.Error("no socket is an error")
	}
	if notify("relative", "READY=1\n") == nil {
		t.Error("a relative path was accepted")
	}
}
