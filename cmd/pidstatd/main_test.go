package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the test binary be pidstatd.
func TestMain(m *testing.M) {
	if os.Getenv("PIDSTATD_TEST_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), "PIDSTATD_TEST_MAIN=1")
	return cmd
}

func ask(t *testing.T, port int, text string) (string, error) {
	t.Helper()
	conn, err := net.Dial("udp", fmt.Sprint("127.0.0.1:", port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 512)
	n, err := conn.Read(b)
	return string(b[:n]), err
}

// foreground starts pidstatd --nofork and returns its port.
func foreground(t *testing.T, args ...string) (*exec.Cmd, int) {
	t.Helper()
	cmd := command(t, append([]string{"--nofork", "--host", "127.0.0.1", "--port", freePort(t)}, args...)...)
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(out)
	line, err := in.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, in) }()
	_, port, _ := strings.Cut(strings.TrimSpace(line), "127.0.0.1:")
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatalf("it says %q", line)
	}
	return cmd, n
}

func freePort(t *testing.T) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return fmt.Sprint(conn.LocalAddr().(*net.UDPAddr).Port)
}

func TestForeground(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		cmd, port := foreground(t)
		for range 3 {
			got, err := ask(t, port, "PIDR 1 h\n")
			if err != nil || got != "EXIS 1 1 h" {
				t.Fatalf("%q, %v", got, err)
			}
			if _, err := net.Dial("udp", fmt.Sprint("127.0.0.1:", port)); err != nil {
				t.Fatal(err)
			}
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v ends it with %v", sig, err)
		}
	}
}

func TestDebug(t *testing.T) {
	port := freePort(t)
	cmd := command(t, "--debug", "--host", "127.0.0.1", "--port", port)
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewScanner(out)
	n, _ := strconv.Atoi(port)
	for _, want := range []string{"serving on 127.0.0.1:" + port, "1 datagrams, 1 answered, 0 no questions, 0 over the rate, 0 ends told", "stopped"} {
		if !in.Scan() || !strings.HasSuffix(in.Text(), want) {
			t.Fatalf("it says %q, want %q", in.Text(), want)
		}
		switch {
		case strings.HasPrefix(want, "serving"):
			if _, err := ask(t, n, "PIDR 1 h"); err != nil {
				t.Fatal(err)
			}
		case strings.HasPrefix(want, "1"):
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// Datagrams that are no questions do it no harm.
func TestBadQuestions(t *testing.T) {
	_, port := foreground(t)
	conn, err := net.Dial("udp", fmt.Sprint("127.0.0.1:", port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, text := range []string{"PIDR abc", "PIDR", "", "\x00", "PIDR -1 h 7", strings.Repeat("PIDR ", 10_000)} {
		if _, err := conn.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := ask(t, port, fmt.Sprintf("PIDR %d", os.Getpid())); err != nil || !strings.HasPrefix(got, fmt.Sprintf("EXIS %d 1 ", os.Getpid())) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestBackground(t *testing.T) {
	port := freePort(t)
	cmd := command(t, "-po", port)
	// Pipes that the background process kept open would keep Wait from returning.
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, errs.String())
	}
	pid := servesOn(t, port)
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	if out.Len()+errs.Len() > 0 {
		t.Errorf("it says %q and %q", out.String(), errs.String())
	}
	n, _ := strconv.Atoi(port)
	if got, err := ask(t, n, "PIDR 1 h"); err != nil || got != "EXIS 1 1 h" {
		t.Fatalf("%q, %v", got, err)
	}
	for _, fd := range []string{"0", "1", "2"} {
		if got, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd)); err != nil || got != "/dev/null" {
			t.Errorf("descriptor %s is %s, %v", fd, got, err)
		}
	}
	if got, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err != nil || got != "/" {
		t.Errorf("its directory is %s, %v", got, err)
	}
	if sid := session(t, pid); sid != pid {
		t.Errorf("its session is %d, not its own %d", sid, pid)
	}

	// Another finds the port in use, and says so before it goes to the background.
	second := command(t, "--port", port)
	text, err := second.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitInUse || !strings.Contains(string(text), "address already in use (a pidstatd or a lockerd answers there already; ") {
		t.Errorf("a second: %v, %s", err, text)
	}

	if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if got, err := ask(t, n, "PIDR 1 h"); err != nil || got != "EXIS 1 1 h" {
		t.Fatalf("after SIGHUP %q, %v", got, err)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	// The port is free again.
	deadline := time.Now().Add(5 * time.Second)
	for {
		conn, err := net.ListenPacket("udp", ":"+port)
		if err == nil {
			conn.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it serves on after SIGTERM")
		}
		time.Sleep(time.Millisecond)
	}
}

func session(t *testing.T, pid int) int {
	t.Helper()
	sid, _, errno := syscall.RawSyscall(syscall.SYS_GETSID, uintptr(pid), 0, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	return int(sid)
}

// servesOn finds the process that was started with a port, by its command line.
func servesOn(t *testing.T, port string) int {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		text, _ := os.ReadFile(name)
		if strings.HasPrefix(string(text), os.Args[0]+"\x00") && strings.HasSuffix(string(text), "\x00"+port+"\x00") {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			return pid
		}
	}
	t.Fatal("nothing runs in the background")
	return 0
}

func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		out  string // its beginning
		err  string
	}{
		{[]string{"--help"}, 0, "pidstatd - tell", ""},
		{[]string{"-h", "--port", "7"}, 0, "pidstatd - tell", ""},
		{[]string{"-version"}, 0, "Version: ", ""},
		{[]string{"--VERS"}, 0, "Version: ", ""},
		{[]string{"--frob"}, exitUsage, "", "%Error: unknown option --frob, see pidstatd --help"},
		{[]string{"word"}, exitUsage, "", `%Error: "word" is no option`},
		{[]string{"--port"}, exitUsage, "", "%Error: option --port requires a value"},
		{[]string{"--port=0"}, exitUsage, "", "%Error: --port: port 0: numbers go from 1 to 65535"},
		{[]string{"--port", "no-such-service"}, exitUsage, "", "%Error: --port: "},
		{[]string{"--rate", "x"}, exitUsage, "", "%Error: option --rate: \"x\" is not what it takes"},
		{[]string{"--host", "192.0.2.1", "--port", "7777"}, exitServe, "", "pidstatd: open the pidstat port: "},
	} {
		var out, errs bytes.Buffer
		code := run(c.args, &out, &errs)
		if code != c.code || !strings.HasPrefix(out.String(), c.out) || !strings.HasPrefix(errs.String(), c.err) ||
			(c.err == "") != (errs.Len() == 0) || strings.Count(errs.String(), "\n") > 1 {
			t.Errorf("%q: %d, %.60q, %q", c.args, code, out.String(), errs.String())
		}
	}
}

func TestHelpHasEveryOption(t *testing.T) {
	var out bytes.Buffer
	run([]string{"--help"}, &out, io.Discard)
	for _, name := range []string{"--help", "--version", "--debug", "--port", "--nofork", "--host", "--rate", "--source-rate"} {
		if !strings.Contains(out.String(), " "+name+" ") {
			t.Errorf("%s is not in the help", name)
		}
	}
}
