package systest

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/lockerd/lockerd/systest/farm"
)

// The number of a holder that has died is given to another process at once. That
// one must not keep the lock of the first, nor lose its own when the first's death
// is told, be it late or twice.
func TestAReusedNumberIsAnotherProcess(t *testing.T) {
	for _, c := range []struct {
		name string
		// away and back are what happens to the node before and after.
		away, back func(t *testing.T, f *farm.Farm)
	}{
		{"while the node watches", nil, nil},
		{
			"while the node is stopped",
			func(t *testing.T, f *farm.Farm) { must(t, f.Nodes[0].Signal(syscall.SIGSTOP)) },
			func(t *testing.T, f *farm.Farm) { must(t, f.Nodes[0].Signal(syscall.SIGCONT)) },
		},
		{
			"while the node is down",
			func(_ *testing.T, f *farm.Farm) { f.Nodes[0].Kill() },
			func(t *testing.T, f *farm.Farm) { restart(t, f) },
		},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			if !inside(t, syscall.CLONE_NEWPID|syscall.CLONE_NEWNS) {
				return
			}
			ownProc(t)
			f := start(t, farm.Options{})
			n := f.Nodes[0]
			at := n.Client()

			sh := startLockersh(t, n, "one", "sleep", "1000")
			owner, first := sh.awaitLock(t, n, "one")
			second := connect(t, at)
			waiter := queued(t, at, "next", "one", owner)
			if c.away != nil {
				c.away(t, f)
			}
			must(t, sh.Process.Kill())
			must(t, syscall.Kill(first, syscall.SIGKILL)) // the holder itself, if that is its command
			sh.kill()
			if first != sh.Process.Pid {
				// The command is ours to bury now.
				await(t, granted, "the command to end", func() error {
					got, err := syscall.Wait4(first, nil, syscall.WNOHANG, nil)
					if err == syscall.ECHILD {
						return nil // lockersh has done it
					}
					if err == nil && got != first {
						err = errors.New("it lives")
					}
					return err
				})
			}
			other := numbered(t, n, first)
			if c.name == "while the node is down" {
				// Of the first it knows the start time only.
				c.back(t, f)
				second, waiter = connect(t, at), hello(t, at)
				must(t, waiter.send("user next\nlocks one\nblock 1\nLOCK\n\n"))
			}
			must(t, second.send("proto 2\n%s", other.lock("second", "two", 0, 2)))
			if c.name == "while the node is stopped" {
				c.back(t, f)
			}
			must(t, waiter.grant("next", granted))
			if _, err := second.lines(1, granted); err != nil {
				t.Fatal(err)
			}
			must(t, second.grant("second", granted))

			// The first's death is told again, as old clients and other nodes may.
			if _, err := ask(at, fmt.Sprintf("DEAD_PID %s %d", n.Hostname(), first), granted); err != nil {
				t.Fatal(err)
			}
			heldBy(t, at, "two", "second")
			n.Kill()
			restart(t, f)
			heldBy(t, at, "two", "second")

			waiter = queued(t, at, "third", "two", "second")
			waiter.silent(t, "third")
			other.kill()
			must(t, waiter.grant("third", granted))
		})
	}
}

func restart(t *testing.T, f *farm.Farm) {
	t.Helper()
	must(t, f.Nodes[0].Start())
	ready(t, f)
}

// numbered starts a process with a number that is free; only the first process of
// a pid namespace may say so.
func numbered(t *testing.T, at *farm.Node, pid int) *process {
	t.Helper()
	for range 50 {
		must(t, os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(fmt.Sprint(pid-1)), 0o644))
		p := sleeper(t, at)
		if p.Process.Pid == pid {
			return p
		}
		p.kill()
	}
	t.Fatalf("no process got the number %d", pid)
	return nil
}
