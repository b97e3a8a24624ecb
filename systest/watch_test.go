package systest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/pidprobe"
	"github.com/lockerd/lockerd/systest/farm"
)

const (
	// mostWatched is how many processes are watched, and filesFor how many open
	// files the node needs for them: it keeps a quarter for other uses.
	mostWatched = 10_000
	filesFor    = mostWatched/3*4 + 100

	watchMemory = 50 << 20         // bytes, for all of them
	idleTime    = 3 * time.Second  // for which the node's time is measured
	idleShare   = 0.05             // of one processor
	takeTime    = 60 * time.Second // for all to get their locks, or to lose them
)

// Watching ten thousand holders costs their node no time while they live, and
// little memory. What the holds themselves cost is told by the same ones without
// autounlock.
func TestTenThousandHolders(t *testing.T) {
	n, files := possible(t)
	pids, end := startCrowd(t, n)
	hold := func(unwatched bool) (node *farm.Node, memory int64) {
		node = start(t, farm.Options{Files: files}).Nodes[0]
		before, _, err := node.Memory()
		must(t, err)
		took := holdAll(t, node, pids, unwatched)
		if !unwatched {
			await(t, granted, "a pidfd for each", func() error {
				if fds := pidfds(t, node); fds < n {
					return fmt.Errorf("%d of %d", fds, n)
				}
				return nil
			})
		}
		after, _, err := node.Memory()
		must(t, err)
		t.Logf("%d holders, unwatched %v: all have their locks within %v, %.1f MB on top of %.1f MB",
			n, unwatched, took.Round(time.Millisecond), mb(after-before), mb(before))
		return node, after - before
	}
	_, plain := hold(true)
	node, watched := hold(false)
	if more := watched - plain; more > watchMemory {
		t.Errorf("watching takes %.1f MB, want %.0f at most", mb(more), mb(watchMemory))
	}
	share := busyShare(t, node)
	t.Logf("then it uses %.2f%% of a processor", 100*share)
	if share > idleShare {
		t.Errorf("%.1f%% of a processor while nothing happens, want %.0f%% at most", 100*share, 100*idleShare)
	}

	began := time.Now()
	end()
	await(t, takeTime, "the locks of the dead to be free", func() error {
		s, err := node.Status(t.Context())
		if err == nil && (s.Counts == nil || s.Counts.Holds > 0) {
			err = fmt.Errorf("%+v", s.Counts)
		}
		return err
	})
	t.Logf("all died and were noticed within %v", time.Since(began).Round(time.Millisecond))
	if left := pidfds(t, node); left > 0 {
		t.Errorf("%d pidfds are left", left)
	}
}

func mb(bytes int64) float64 { return float64(bytes) / (1 << 20) }

// possible is mostWatched and filesFor, or what our limits let the node have of it.
func possible(t *testing.T) (holders int, files uint64) {
	t.Helper()
	var l unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &l))
	if l.Max < filesFor && unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: l.Cur, Max: filesFor}) != nil {
		return int(l.Max) * mostWatched / filesFor, l.Max
	}
	return mostWatched, filesFor
}

// startCrowd starts n processes, which end when told to, or with us.
func startCrowd(t *testing.T, n int) (pids []int32, end func()) {
	t.Helper()
	// A shell's children, which read what never comes.
	c := exec.Command("sh", "-c", fmt.Sprintf("exec 3<&0; i=0; while [ $i -lt %d ]; do read x <&3 & echo $!; i=$((i+1)); done; wait", n))
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	stdin, err := c.StdinPipe()
	must(t, err)
	stdout, err := c.StdoutPipe()
	must(t, err)
	c.Stderr = os.Stderr
	must(t, c.Start())
	end = sync.OnceFunc(func() {
		_ = stdin.Close() // the only writer
		_, _ = io.Copy(io.Discard, stdout)
		_ = c.Wait()
	})
	t.Cleanup(end)
	lines := bufio.NewScanner(stdout)
	for len(pids) < n && lines.Scan() {
		pid, err := pidprobe.ParsePID(lines.Text())
		must(t, err)
		pids = append(pids, pid)
	}
	if len(pids) < n {
		t.Fatalf("only %d processes, %v", len(pids), lines.Err())
	}
	return pids, end
}

// holdAll lets each process hold a lock.
func holdAll(t *testing.T, node *farm.Node, pids []int32, unwatched bool) time.Duration {
	t.Helper()
	const connections = 256
	ctx, cancel := context.WithCancelCause(limited(t, takeTime))
	var wg sync.WaitGroup
	var next atomic.Int64
	began := time.Now()
	for range connections {
		w := hello(t, node.Client())
		stop := context.AfterFunc(ctx, func() { _ = w.Close() })
		wg.Go(func() {
			defer stop()
			defer w.Close()
			for i := int(next.Add(1)) - 1; i < len(pids); i = int(next.Add(1)) - 1 {
				if err := holdOne(w, pids[i], node, unwatched); err != nil {
					cancel(fmt.Errorf("holder %d: %w", i, err))
					return
				}
			}
		})
	}
	wg.Wait()
	must(t, context.Cause(ctx))
	took := time.Since(began)
	cancel(nil)
	return took
}

func holdOne(w *wire, pid int32, node *farm.Node, unwatched bool) error {
	id, err := pidprobe.Lookup(pid)
	if err != nil {
		return err
	}
	p := &process{id: id, host: node.Hostname(), boot: pidprobe.Here(), unwatched: unwatched}
	user := fmt.Sprint("holder-", pid)
	if err := w.send("%s", p.lock(user, user, 0, int(pid))); err != nil {
		return err
	}
	return w.grant(user, granted)
}

// pidfds counts the node's descriptors of processes.
func pidfds(t *testing.T, node *farm.Node) int {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd/", node.PID())
	list, err := os.ReadDir(dir)
	must(t, err)
	n := 0
	for _, e := range list {
		// An anonymous inode, or since Linux 6.9 one of a file system of theirs.
		if to, err := os.Readlink(dir + e.Name()); err == nil && (strings.Contains(to, "[pidfd]") || strings.HasPrefix(to, "pidfd:")) {
			n++
		}
	}
	return n
}

// busyShare measures for a while how much of a processor the node uses.
func busyShare(t *testing.T, node *farm.Node) float64 {
	t.Helper()
	from, began := ticks(t, node), time.Now()
	over := time.NewTimer(idleTime)
	defer over.Stop()
	<-over.C
	const perSecond = 100 // USER_HZ, which is this on every platform of Go's
	return float64(ticks(t, node)-from) / perSecond / time.Since(began).Seconds()
}

// ticks is the processor time of the node: utime and stime of proc_pid_stat(5).
func ticks(t *testing.T, node *farm.Node) (sum int64) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", node.PID()))
	must(t, err)
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	for _, f := range fields[11:13] { // fields 14 and 15
		v, err := strconv.ParseInt(string(f), 10, 64)
		must(t, err)
		sum += v
	}
	return sum
}
