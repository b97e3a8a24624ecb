package self

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/freezer/checkpoint"
)

// The test program itself is what has itself checkpointed, in a role.
const roleVariable = "CHECKPOINT_TEST_ROLE"

var roles = map[string]func(args []string){
	"app":      app,
	"parent":   parent,
	"signals":  func([]string) { signals(true) },
	"unaware":  func([]string) { signals(false) },
	"asks":     asks,
	"connects": connects,
}

func TestMain(m *testing.M) {
	checkpoint.AtStage()
	if role := os.Getenv(roleVariable); role != "" {
		roles[role](os.Args[1:])
		os.Exit(0)
	}
	if os.Getenv(userVariable) != "" {
		if err := liveAsRoot(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	// Orphans become our children, so that their numbers are free again when we say so.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

var found = sync.OnceValues(func() (*checkpoint.CRIU, error) { return checkpoint.Find(context.Background()) })

// need skips a test that takes root and CRIU. Where LOCKERD_REQUIRE_CRIU is set it fails
// instead.
func need(t *testing.T) {
	t.Helper()
	skip := t.Skip
	if os.Getenv("LOCKERD_REQUIRE_CRIU") != "" {
		skip = t.Fatal
	}
	if os.Geteuid() != 0 {
		skip("it takes root to checkpoint processes")
	}
	if _, err := found(); err != nil {
		skip(err)
	}
}

// app is app FILE MODE: it listens, and when there is a file "go" it stops listening,
// checkpoints itself, and listens again.
func app(args []string) {
	l := listen()
	fmt.Println("begun", l.Addr())
	for !isThere("go") {
		time.Sleep(2 * time.Millisecond)
	}
	l.Close()
	o, err := Ask(context.Background(), args[0], Mode(args[1] == "exit"))
	if err != nil {
		fmt.Println("error", err)
	} else {
		l = listen()
		fmt.Printf("%v %v %s pid %d\n", o.Restored, l.Addr(), o.Restart, os.Getpid())
	}
	for {
		time.Sleep(time.Hour)
	}
}

func listen() net.Listener {
	var plain net.ListenConfig
	plain.SetMultipathTCP(false)
	l, err := plain.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	return l
}

// parent has a child that is not its user's, and asks.
func parent(args []string) {
	cmd := exec.Command("/bin/sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65533, Gid: 65533}}
	if err := cmd.Start(); err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	if err := syscall.Setuid(65534); err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	asks(args)
	for {
		time.Sleep(time.Hour)
	}
}

// asks is asks FILE: it says what the server says.
func asks(args []string) {
	o, err := Ask(context.Background(), args[0], Stay)
	fmt.Println(o.Restored, err)
}

// connects is connects LINE...: it says the lines, and does not hang up.
func connects(lines []string) {
	conn, err := net.Dial("unix", os.Getenv(SocketVariable))
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	r, _, err := os.Pipe()
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	for _, line := range lines {
		fmt.Fprintln(conn, strings.ReplaceAll(line, "PIPE", fmt.Sprint(r.Fd())))
	}
	fmt.Println("connected")
	line, err := readLine(lineReader(conn))
	fmt.Printf("said %q %v\n", line, err)
	line, _ = readLine(lineReader(r))
	fmt.Printf("then %q\n", line)
}

// signals looks at them, or does not.
func signals(look bool) {
	c := make(chan os.Signal, 1)
	if look {
		if err := Notify(c); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
	} else {
		signal.Notify(c, syscall.SIGTERM)
	}
	fmt.Println("ready")
	fmt.Println(<-c)
}

func isThere(path string) bool { _, err := os.Stat(path); return err == nil }

// job is a process with its output in a file, and a server for it.
type job struct {
	starting sync.Mutex
	cmd      *exec.Cmd
	dir      string
	socket   string
	events   chan Event
}

func (j *job) path(name string) string { return filepath.Join(j.dir, name) }
func (j *job) pid() int                { return j.cmd.Process.Pid }

func (j *job) out() string {
	text, _ := os.ReadFile(j.path("out"))
	return string(text[:bytes.LastIndexByte(text, '\n')+1])
}

// begin starts a role and a server for its tree.
func begin(t *testing.T, o Options, uid uint32, role string, args ...string) *job {
	t.Helper()
	j := serve(t, o, int(uid))
	j.start(t, role, uid, args...)
	return j
}

// serve starts a server of which the job is not there yet.
func serve(t *testing.T, o Options, uid int) *job {
	t.Helper()
	dir, err := os.MkdirTemp("", "checkpoint-self-*") // another user cannot get into t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chown(dir, uid, uid)); err != nil {
		t.Fatal(err)
	}
	j := &job{dir: dir, socket: filepath.Join(dir, "socket"), events: make(chan Event, 64)}
	l, err := Listen(j.socket)
	if err != nil {
		t.Fatal(err)
	}
	if o.Root == nil {
		o.Root = func(int) int {
			j.starting.Lock() // it may ask before we know it
			defer j.starting.Unlock()
			if j.cmd == nil {
				return 0
			}
			return j.pid()
		}
	}
	o.Done = func(e Event) { j.events <- e }
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, l, o) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("the server ended with %v", err)
		}
	})
	return j
}

// command is a role of this program.
func (j *job) command(role string, uid uint32, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role, SocketVariable+"="+j.socket, "GORACE=atexit_sleep_ms=0")
	cmd.Dir = j.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return cmd
}

func (j *job) start(t *testing.T, role string, uid uint32, args ...string) {
	t.Helper()
	j.run(t, j.command(role, uid, args...))
}

// run starts the job.
func (j *job) run(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	out, err := os.OpenFile(j.path("out"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	j.starting.Lock()
	err = cmd.Start()
	if err == nil {
		j.cmd = cmd
	}
	j.starting.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(j.kill)
}

func (j *job) kill() {
	_ = syscall.Kill(-j.pid(), syscall.SIGKILL) // it has a group of its own
	_, _ = j.cmd.Process.Wait()
	for {
		if _, err := syscall.Wait4(-j.pid(), nil, 0, nil); err != syscall.EINTR && err != nil {
			return
		}
	}
}

// await waits for a condition.
func (j *job) await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for until := time.Now().Add(30 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("waited in vain for %s; the job says\n%s", what, j.out())
		}
	}
}

// says waits for a line with a word in it, and returns the line's words.
func (j *job) says(t *testing.T, word string) []string {
	t.Helper()
	var found []string
	j.await(t, fmt.Sprintf("%q", word), func() bool {
		for line := range strings.Lines(j.out()) {
			if strings.Contains(line, word) {
				found = strings.Fields(line)
			}
		}
		return found != nil
	})
	return found
}

// event waits for the end of a request.
func (j *job) event(t *testing.T) Event {
	t.Helper()
	select {
	case e := <-j.events:
		return e
	case <-time.After(30 * time.Second):
		t.Fatalf("no request was answered; the job says\n%s", j.out())
		return Event{}
	}
}

// restart starts the job again, to the end of the test.
func (j *job) restart(t *testing.T, p checkpoint.Plan) {
	t.Helper()
	p.KeepGroups, p.KeepSessions = true, true
	r, err := checkpoint.Restart(t.Context(), p)
	if err != nil {
		t.Fatalf("restart: %v", err)
	}
	t.Cleanup(func() {
		_ = r.Signal(syscall.SIGKILL)
		_, _ = r.Wait()
	})
}
