package checkpoint

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test program itself is what is checkpointed, in a role.
const roleVariable = "CHECKPOINT_TEST_ROLE"

var roles = map[string]func(args []string){
	"count":     count,
	"spin":      spin,
	"threads":   threads,
	"memory":    memory,
	"sums":      sums,
	"talk":      talk,
	"listen":    listen,
	"writer":    requester,
	"restart":   restarter,
	"preflight": preflighter,
}

func TestMain(m *testing.M) {
	AtStage()
	if role := os.Getenv(roleVariable); role != "" {
		roles[role](os.Args[1:])
		os.Exit(0)
	}
	if os.Getenv(outsideVariable) != "" {
		if err := liveOutside(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	// Orphans become our children, so that their numbers are free again when we say so: not
	// every first process of a container reaps.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

var found = sync.OnceValues(func() (*CRIU, error) { return Find(context.Background()) })

// need skips a test that takes root and CRIU. Where LOCKERD_REQUIRE_CRIU is set it fails
// instead.
func need(tb testing.TB) *CRIU {
	tb.Helper()
	skip := tb.Skip
	if os.Getenv("LOCKERD_REQUIRE_CRIU") != "" {
		skip = tb.Fatal
	}
	if os.Geteuid() != 0 {
		skip("it takes root to checkpoint processes")
	}
	c, err := found()
	if err != nil {
		skip(err)
	}
	return c
}

// job is a process that is checkpointed.
type job struct {
	cmd *exec.Cmd
	dir string
}

func (j *job) pid() int { return j.cmd.Process.Pid }

// begin starts a role of this program in a directory of its own, and waits for the first
// line of its output, in the file out.
func begin(tb testing.TB, role string, args ...string) *job {
	tb.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role, "GORACE=atexit_sleep_ms=0")
	return start(tb, cmd)
}

func shell(tb testing.TB, script string) *job {
	tb.Helper()
	return start(tb, exec.Command("/bin/sh", "-c", script))
}

func start(tb testing.TB, cmd *exec.Cmd) *job {
	tb.Helper()
	j := &job{cmd: cmd, dir: tb.TempDir()}
	out, err := os.OpenFile(j.path("out"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	defer out.Close()
	cmd.Dir, cmd.Stdout, cmd.Stderr = j.dir, out, out
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(j.kill)
	j.await(tb, "its first line", func() bool { return len(j.lines()) > 0 })
	return j
}

func (j *job) path(name string) string { return filepath.Join(j.dir, name) }

// kill ends the job and all that it has started.
func (j *job) kill() {
	if j.cmd.ProcessState == nil {
		pids := tree(j.pid())
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		_ = j.cmd.Wait()
		reapAll(pids)
	}
}

// reapAll waits for those that are killed and whose parents are, too.
func reapAll(pids []int) {
	for _, pid := range pids {
		_, _ = waitFor(pid)
	}
}

// tree lists a process and its descendants.
func tree(root int) (pids []int) {
	all, err := readTable()
	if err != nil {
		return nil
	}
	for pid := range all {
		if all.below(pid, root) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (j *job) lines() []string {
	text, err := os.ReadFile(j.path("out"))
	if err != nil {
		return nil
	}
	whole := text[:bytes.LastIndexByte(text, '\n')+1]
	return strings.Split(strings.TrimSpace(string(whole)), "\n")[:bytes.Count(whole, []byte("\n"))]
}

// number is that in the last line of the output.
func (j *job) number() int {
	lines := j.lines()
	if len(lines) == 0 {
		return 0
	}
	n, _ := strconv.Atoi(strings.Fields(lines[len(lines)-1] + " x")[0])
	return n
}

func (j *job) await(tb testing.TB, what string, is func() bool) {
	tb.Helper()
	await(tb, what, is, func() string { return strings.Join(j.lines(), "\n") })
}

// await waits for a condition.
func await(tb testing.TB, what string, is func() bool, show ...func() string) {
	tb.Helper()
	for until := time.Now().Add(30 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(until) {
			for _, s := range show {
				tb.Log(s())
			}
			tb.Fatalf("waited in vain for %s", what)
		}
	}
}

// goesOn waits until the job has counted on.
func (j *job) goesOn(tb testing.TB) {
	tb.Helper()
	n := j.number()
	j.await(tb, "the job to count on", func() bool { return j.number() > n+1 })
}

// save checkpoints the job and ends it, and returns the file.
func (j *job) save(tb testing.TB, change ...func(*Order)) (file string, r *Report) {
	tb.Helper()
	o := Order{Target: Tree(j.pid()), File: j.path("job.ckpt"), Signal: syscall.SIGKILL, CRIU: need(tb)}
	for _, c := range change {
		c(&o)
	}
	r, err := Checkpoint(context.Background(), o)
	if err != nil {
		tb.Fatalf("checkpoint: %v", err)
	}
	if o.Signal == syscall.SIGKILL {
		_ = j.cmd.Wait()
		for _, p := range r.Manifest.Processes {
			reapAll([]int{p.PID})
		}
	}
	noBoxes(tb, j.dir)
	return o.File, r
}

// restart starts the job again, to the end of the test.
func restart(tb testing.TB, p Plan) *Job {
	tb.Helper()
	p.CRIU = need(tb)
	r, err := Restart(context.Background(), p)
	if err != nil {
		tb.Fatalf("restart: %v", err)
	}
	tb.Cleanup(func() {
		if p.NewPIDs {
			_ = r.Signal(syscall.SIGKILL)
		} else {
			for _, one := range r.Manifest.Processes {
				_ = syscall.Kill(one.PID, syscall.SIGKILL)
			}
		}
		_, _ = r.Wait()
		for _, one := range r.Manifest.Processes {
			reapAll([]int{one.PID})
		}
	})
	return r
}

func noBoxes(tb testing.TB, dir string) {
	tb.Helper()
	if left, _ := filepath.Glob(filepath.Join(dir, boxPattern)); len(left) > 0 {
		tb.Errorf("left behind: %v", left)
	}
}

// count counts: "N pid P parent Q group G session S", to the end at a number if one
// is given, with status 7.
func count(args []string) {
	last := 0
	if len(args) > 0 {
		last, _ = strconv.Atoi(args[0])
	}
	for n := 1; last == 0 || n <= last; n++ {
		sid, _ := unix.Getsid(0)
		fmt.Printf("%d pid %d parent %d group %d session %d\n", n, os.Getpid(), os.Getppid(), syscall.Getpgrp(), sid)
		time.Sleep(5 * time.Millisecond)
	}
	os.Exit(7)
}

// threads counts in many threads at once.
func threads([]string) {
	var mu sync.Mutex
	total := 0
	for range 10 {
		go func() {
			runtime.LockOSThread()
			for {
				mu.Lock()
				total++
				fmt.Println(total, "thread", unix.Gettid())
				mu.Unlock()
				time.Sleep(10 * time.Millisecond)
			}
		}()
	}
	select {}
}

// memory counts with so many megabytes of memory, and says how long it stood still at
// most since it was asked (SIGUSR1).
func memory(args []string) {
	megabytes, _ := strconv.Atoi(args[0])
	data := make([]byte, megabytes<<20)
	x := uint64(1)
	for i := 0; i+8 <= len(data); i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		for k := range 8 {
			data[i+k] = byte(x >> (8 * k))
		}
	}
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1)
	most, last := time.Duration(0), time.Now()
	for n := 1; ; n++ {
		time.Sleep(time.Millisecond)
		now := time.Now()
		most, last = max(most, now.Sub(last)), now
		select {
		case <-asked:
			fmt.Println(n, "gap", most.Microseconds())
			most = 0
		default:
			if n == 1 {
				fmt.Println(n, "gap", 0)
			}
		}
		data[n%len(data)]++
	}
}

// sums says the sum of so many megabytes of memory over and over, reading all of them.
func sums(args []string) {
	megabytes, _ := strconv.Atoi(args[0])
	data := make([]byte, megabytes<<20)
	source := rand.NewChaCha8([32]byte{})
	_, _ = source.Read(data)
	for n := 1; ; n++ {
		fmt.Printf("%d %08x\n", n, crc32.Checksum(data, castagnoli))
		time.Sleep(5 * time.Millisecond)
	}
}

// talk counts what goes through a TCP connection to itself.
func talk([]string) {
	var plain net.ListenConfig
	plain.SetMultipathTCP(false) // which CRIU does not know
	l, err := plain.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		panic(err)
	}
	b, err := l.Accept()
	if err != nil {
		panic(err)
	}
	in := bufio.NewReader(b)
	for n := 1; ; n++ {
		if _, err := fmt.Fprintln(a, n); err != nil {
			fmt.Println(n, "closed")
			break
		}
		line, err := in.ReadString('\n')
		if err != nil {
			fmt.Println(n, "closed")
			break
		}
		fmt.Print(line)
		time.Sleep(5 * time.Millisecond)
	}
	for {
		time.Sleep(time.Hour)
	}
}

// listen says at which address it listens, and hangs up on everybody.
func listen([]string) {
	var plain net.ListenConfig
	plain.SetMultipathTCP(false) // which CRIU does not know
	l, err := plain.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(l.Addr())
	for {
		conn, err := l.Accept()
		if err != nil {
			panic(err)
		}
		_ = conn.Close()
	}
}

// requester checkpoints PID to FILE with SIGNAL, and may be killed meanwhile.
func requester(args []string) {
	pid, _ := strconv.Atoi(args[0])
	sig, _ := strconv.Atoi(args[2])
	_, err := Checkpoint(context.Background(), Order{Target: Tree(pid), File: args[1], Signal: syscall.Signal(sig)})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// restarter restarts a file, and waits.
func restarter(args []string) {
	job, err := Restart(context.Background(), Plan{File: args[0]})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	_, _ = job.Wait()
}

// limited is a writer that is full some time.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if len(p) > l.left {
		return 0, unix.ENOSPC
	}
	l.left -= len(p)
	return l.w.Write(p)
}
