package main

import (
	"bufio"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestAgainstNode asks a real node: what lockctl reads is what lockerd writes.
func TestAgainstNode(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "lockerd")
	if out, err := exec.Command("go", "build", "-o", bin, "../lockerd").CombinedOutput(); err != nil {
		t.Fatalf("build lockerd: %v\n%s", err, out)
	}
	admin := filepath.Join(t.TempDir(), "admin")
	cmd := exec.CommandContext(t.Context(), bin, "--port", "0", "--peer", "127.0.0.1:0", "--gossip", "off", "--http", "127.0.0.1:0",
		"--data-dir", t.TempDir(), "--name", "n1", "--admin", admin)
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	addrs := regexp.MustCompile(`serving: .*clients=(\S+) http=(\S+)`)
	var found []string
	sc := bufio.NewScanner(log)
	for found == nil && sc.Scan() {
		found = addrs.FindStringSubmatch(sc.Text())
	}
	if found == nil {
		t.Fatal("lockerd did not start")
	}
	go io.Copy(io.Discard, log)
	clients, web := found[1], found[2]

	request := func(user string) *bufio.Reader {
		c, err := net.Dial("tcp", clients)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(20 * time.Second))
		io.WriteString(c, "user "+user+"\nlock a\nblock 1\ntimeout 0\nLOCK\n")
		return bufio.NewReader(c)
	}
	until := func(r *bufio.Reader, text string) {
		t.Helper()
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				t.Fatalf("waiting for %q: %v", text, err)
			}
			if strings.Contains(line, text) {
				return
			}
		}
	}
	until(request("alice"), "locked 1")
	bob := request("bob")
	until(bob, "print_waiting alice")

	ask := func(args string, code int, want ...string) {
		t.Helper()
		got, out, errs := lockctl(t, web, args)
		if got != code {
			t.Errorf("%s: exit code %d, want %d: %s", args, got, code, errs)
		}
		for _, w := range want {
			if !regexp.MustCompile(w).MatchString(out + errs) {
				t.Errorf("%s: no %q in:\n%s%s", args, w, out, errs)
			}
		}
	}
	ask("status --digest", 0, `n1 \(leader\)`, `Ready +yes`, `1 locks, 1 holds, 1 waiting`, `Digest +[0-9a-f]{16} at \d+`)
	ask("status --json", 0, `"role": "leader"`)
	ask("members", 0, `n1 +leader`)
	ask("doctor orders --admin "+admin, 0, `lockerd +orders +ok +n1 \(leader\) at `, `admin +orders +limited +n1 .* start it with --executors`)
	ask("locks", 0, `a +alice +1 +exclusive .* 1\n`, `a +bob +1 +exclusive`)
	ask("break a --fence 99", 1, `fence 99`)
	ask("transfer", 1, `refused: no other server can lead`)
	ask("transfer n9", 1, `refused: no server is called n9`)
	ask("remove n1", 1, `refused: n1 is the last server with a vote: let another one join first`)
	ask("remove n1 --force", 1, `the last server with a vote`)
	ask("remove n9", 1, `refused: no server is called n9`)
	ask("transfer n1", 0, `Leader: n1\n`)

	out := new(lines)
	go run(t.Context(), []string{"--addr", web, "watch", "--lock", "a"}, out, io.Discard)
	// The watch shows nothing of its own when it is there, so the lock is broken
	// until it is seen.
	ask("break a --by tester", 0, `Broken: a, held by alice`)
	until(bob, "locked 1")
	deadline := time.Now().Add(20 * time.Second)
	for !strings.Contains(out.String(), "broken by tester") {
		if time.Now().After(deadline) {
			t.Fatalf("the watch saw %q", out)
		}
		until(request("carol"), "\n")
		lockctl(t, web, "break a --by tester")
	}
	ask("break nobody-has-this", 1, `nobody holds`)
}
