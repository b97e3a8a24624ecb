package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/lockerd/lockerd/pidprobe"
)

// serve runs a pidstatd on loopback and returns its port.
func serve(t *testing.T) string {
	t.Helper()
	conn, err := pidprobe.Listen(t.Context(), "127.0.0.1", 0)
	if err != nil {
		t.Fatal(err)
	}
	s, err := pidprobe.NewServer(conn, pidprobe.ServerConfig{Name: "served.example"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return fmt.Sprint(s.Addr().Port)
}

func TestExists(t *testing.T) {
	port := serve(t)
	own := fmt.Sprint(os.Getpid())
	const free = "2147483647"
	silent := net.UDPAddr{IP: net.IPv4(127, 0, 0, 9)} // hears and never answers
	mute, err := net.ListenUDP("udp", &silent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mute.Close() })
	mutePort := fmt.Sprint(mute.LocalAddr().(*net.UDPAddr).Port)

	for _, c := range []struct {
		name string
		args string
		code int
		out  string
		err  string // a part of it
	}{
		{"local, no daemon needed", "--port 1 exists " + own, 0, "localhost:" + own + " up\n", ""},
		{"local by colon alone", "--port 1 exists :1", 0, "localhost:1 up\n", ""},
		{"a bracketed address", "--port 1 exists localhost:1 [127.0.0.1]:1", 2, "localhost:1 up\n127.0.0.1:1 host_down\n", ""},
		{"all up", "--port " + port + " exists " + own + " 127.0.0.1:1", 0, "localhost:" + own + " up\n127.0.0.1:1 up\n", ""},
		{"down", "--port " + port + " exists 127.0.0.1:1 127.0.0.1:" + free, 1, "127.0.0.1:1 up\n127.0.0.1:" + free + " down\n", ""},
		{"the local answer is no other's", "--port " + port + " exists localhost:" + free + " 127.0.0.1:1", 1, "localhost:" + free + " down\n127.0.0.1:1 up\n", ""},
		{"--host", "--port " + port + " --host 127.0.0.1 exists 1 localhost:1", 0, "127.0.0.1:1 up\nlocalhost:1 up\n", ""},
		{"options after the command", "exists 1 -host=127.0.0.1 --po " + port, 0, "127.0.0.1:1 up\n", ""},
		{"nobody listens", "--port 1 exists 127.0.0.1:1 localhost:" + free, 2, "127.0.0.1:1 host_down\nlocalhost:" + free + " down\n", ""},
		{"no answer", "--port " + mutePort + " exists 127.0.0.9:1 localhost:1", 2, "127.0.0.9:1 host_down\nlocalhost:1 up\n", ""},
		{"no such host", "exists no-such-host.invalid:1 localhost:1", 2, "no-such-host.invalid:1 host_down\nlocalhost:1 up\n", "%Error: Can't find host no-such-host.invalid\n"},
		{"--silent", "--silent --port " + port + " exists localhost:" + free, 1, "", ""},
		{"--debug", "--debug exists 1", 0, "localhost:1 up\n", "localhost:1 is alive after "},
		{"nothing to ask", "exists", 0, "", ""},
		{"no command", "", exitUsage, "", "%Error: No command specified, see --help\n"},
		{"another command", "frob", exitUsage, "", "%Error: Unknown pidstat command: frob\n"},
		{"no number", "exists abc", exitUsage, "", `%Error: "abc": a process number is from 1`},
		{"none that is possible", "exists 1 host:0", exitUsage, "", `%Error: "host:0": `},
		{"no port", "--port x! exists 1", exitUsage, "", "%Error: --port: "},
		{"no option", "--frob", exitUsage, "", "%Error: unknown option --frob"},
		{"--version", "--version", 0, "Version: " + version + "\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var out, errs bytes.Buffer
			code := run(strings.Fields(c.args), &out, &errs)
			if code != c.code || out.String() != c.out || !strings.Contains(errs.String(), c.err) || (c.err == "") != (errs.Len() == 0) {
				t.Errorf("pidstat %s: %d, want %d\n%s%s", c.args, code, c.code, out.String(), errs.String())
			}
		})
	}
}

// A name in /etc/services is resolved, for the client as for the server.
func TestServiceName(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("to put another file over /etc/services takes root")
	}
	port := serve(t)
	services := t.TempDir() + "/services"
	if err := os.WriteFile(services, []byte("pidstatd "+port+"/udp\nstat2 "+port+"/udp\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, option := range []string{"", "--port pidstatd", "--port stat2"} {
		script := "mount --bind " + services + " /etc/services && exec " + os.Args[0] + " " + option + " exists 127.0.0.1:1"
		cmd := exec.Command("unshare", "-m", "sh", "-c", script)
		cmd.Env = append(os.Environ(), "PIDSTAT_TEST_MAIN=1")
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != "127.0.0.1:1 up\n" {
			t.Errorf("%q: %v, %s", option, err, out)
		}
	}
}

// Many items take no longer than one.
func TestSilentHostsAtOnce(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	args := []string{"--port", fmt.Sprint(conn.LocalAddr().(*net.UDPAddr).Port), "exists"}
	for i := 1; i <= 40; i++ {
		args = append(args, fmt.Sprint("127.0.0.1:", i))
	}
	var out bytes.Buffer
	began := time.Now()
	if code := run(args, &out, io.Discard); code != exitNone {
		t.Errorf("exit %d", code)
	}
	if took := time.Since(began); took < 4*time.Second || took > time.Minute {
		t.Errorf("40 hosts that do not answer take %v, want 5 tries of a second", took)
	}
	if n := strings.Count(out.String(), "host_down\n"); n != 40 {
		t.Errorf("%d lines", n)
	}
}

func TestMain(m *testing.M) {
	if os.Getenv("PIDSTAT_TEST_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

func TestHelpHasEveryOption(t *testing.T) {
	var out bytes.Buffer
	if code := run([]string{"--help"}, &out, io.Discard); code != 0 {
		t.Errorf("exit %d", code)
	}
	for _, name := range []string{"--help", "--host", "--port", "--silent", "--version", "--debug", "exists"} {
		if !strings.Contains(out.String(), name+" ") {
			t.Errorf("%s is not in the help", name)
		}
	}
}
