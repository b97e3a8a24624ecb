package main

import (
	"bufio"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
)

// Ctrl-C is for the command, and the watch does not mind it.
func TestTerminal(t *testing.T) {
	p := sleeper(t)
	cmd := command(t, "--pid", pidOf(p), `trap 'echo interrupted' INT; test -t 0 && echo up; n=0; while [ $n -lt 1000 ]; do sleep 0.02; n=$((n+1)); done`)
	tty, err := pty.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	t.Cleanup(func() { end(cmd) })
	_ = tty.SetReadDeadline(time.Now().Add(20 * time.Second))
	in := bufio.NewReader(tty)
	await := func(what string) {
		t.Helper()
		for {
			line, err := in.ReadString('\n')
			if strings.Contains(line, what) {
				return
			}
			if err != nil {
				t.Fatalf("no %q from the command: %v", what, err)
			}
		}
	}
	await("up")
	if _, err := tty.Write([]byte{3}); err != nil {
		t.Fatal(err)
	}
	await("interrupted")
	end(p)
	if _, err := in.ReadString('\n'); err == nil || os.IsTimeout(err) {
		t.Errorf("the terminal goes on: %v", err)
	}
	_ = cmd.Wait()
	if got := status(cmd); got != 129 {
		t.Errorf("exit %d, want 129", got)
	}
}
