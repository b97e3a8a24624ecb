package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/freezer"
	"github.com/lockerd/lockerd/freezer/checkpoint"
	"github.com/lockerd/lockerd/freezer/checkpoint/self"
	"github.com/lockerd/lockerd/job"
)

// patience is how long a script waits for what must happen.
const patience = time.Minute

func TestMain(m *testing.M) {
	job.AtGate()
	checkpoint.AtStage()
	testscript.Main(m, map[string]func(){"lockersh": main, keeperName: main, batchName: main, "aware": aware})
}

// lockerd is the server under the scripts, in a directory with other commands that they
// use, built once.
var lockerd = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "lockersh-test")
	if err != nil {
		return "", err
	}
	if out, err := exec.Command("go", "build", "-o", dir, "../lockerd", "../cr_checkpoint", "../cr_restart").CombinedOutput(); err != nil {
		return "", errors.New(string(out))
	}
	return filepath.Join(dir, "lockerd"), nil
})

// aware is aware FILE: a program that checkpoints itself when it is asked to, and says how
// that went, until there is a file "end".
func aware() {
	said, err := os.OpenFile("said", os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		os.Exit(1)
	}
	asked := make(chan os.Signal, 8)
	if err := self.Notify(asked); err != nil {
		os.Exit(1)
	}
	fmt.Fprintln(said, "ready")
	for {
		select {
		case s := <-asked:
			ask := freezer.Checkpoint
			if s == self.SIGCKPTEXIT {
				ask = freezer.CheckpointAndExit
			}
			restored, err := ask(os.Args[1])
			fmt.Fprintln(said, map[bool]string{false: "saved", true: "restored"}[restored], err)
		case <-time.After(10 * time.Millisecond):
			if _, err := os.Stat("end"); err == nil {
				os.Exit(6)
			}
		}
	}
}

// TestScripts runs testdata/*.txtar, each with a cluster of one node of its own.
// Besides the commands of testscript they have:
//
//	lockerd [restart|kill]        the node; after kill it is dead, after restart it
//	                         was killed and serves again
//	eventually CMD [ARG]...       runs a command again and again until it succeeds
func TestScripts(t *testing.T) {
	server, err := lockerd()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(filepath.Dir(server)) })
	example, err := filepath.Abs("../../docs/examples/checkpoint.c")
	if err != nil {
		t.Fatal(err)
	}
	criu, missing := checkpoint.Find(t.Context())
	if os.Geteuid() != 0 {
		missing = errors.New("it takes root to checkpoint processes")
	}
	if missing != nil && os.Getenv("LOCKERD_REQUIRE_CRIU") != "" {
		t.Fatal(missing)
	}
	// What we were given may be of other mounts than those that are made here, and CRIU
	// refuses such.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "root":
				return os.Getuid() == 0, nil
			case "criu":
				return missing == nil, nil
			}
			return false, errors.New("unknown condition " + cond)
		},
		Setup: func(env *testscript.Env) error {
			env.Setenv("IPCLOCKER_PORT", filepath.Join(env.WorkDir, "sock"))
			env.Setenv("USER", "tester")
			env.Setenv("COMMANDS", filepath.Dir(server))
			env.Setenv("CHECKPOINT_C", example)
			if missing == nil {
				env.Setenv("LOCKERD_CRIU", criu.Path)
			}
			env.Setenv("GORACE", os.Getenv("GORACE"))
			n := &node{path: server, dir: env.WorkDir}
			env.Values["node"] = n
			env.Defer(n.kill)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"lockerd":    cmdLockerd,
			"eventually": cmdEventually,
			"ended":      cmdEnded,
		},
	})
}

// node is the lockerd of one script.
type node struct {
	path, dir string
	cmd       *exec.Cmd
}

func (n *node) start(ts *testscript.TestScript) {
	log, err := os.OpenFile(filepath.Join(n.dir, "lockerd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	ts.Check(err)
	defer log.Close()
	n.cmd = exec.Command(n.path, "--path", filepath.Join(n.dir, "sock"), "--data-dir", filepath.Join(n.dir, "data"),
		"--peer", "127.0.0.1:0", "--gossip", "off", "--http", "off", "--admin", "off")
	n.cmd.Stderr = log
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ts.Check(n.cmd.Start())
	cmdEventually(ts, false, []string{"lockersh", "--try", "--lock", "probe", "true"})
}

func (n *node) kill() {
	if n.cmd != nil {
		_ = n.cmd.Process.Kill()
		_ = n.cmd.Wait()
		n.cmd = nil
	}
}

func cmdLockerd(ts *testscript.TestScript, _ bool, args []string) {
	n := ts.Value("node").(*node)
	switch {
	case len(args) == 0:
		n.start(ts)
	case args[0] == "restart":
		n.kill()
		n.start(ts)
	case args[0] == "kill":
		n.kill()
	default:
		ts.Fatalf("usage: lockerd [restart|kill]")
	}
}

// cmdEnded waits for the end of the process whose number is in a file. It may be that nobody
// waits for it: not every first process does so.
func cmdEnded(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: ended FILE")
	}
	pid := strings.TrimSpace(ts.ReadFile(args[0]))
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		text, err := os.ReadFile("/proc/" + pid + "/stat")
		state := strings.TrimSpace(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		if err != nil || strings.HasPrefix(state, "Z") || strings.HasPrefix(state, "X") {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("process %s is there still: %s", pid, text)
		}
	}
}

func cmdEventually(ts *testscript.TestScript, _ bool, args []string) {
	deadline := time.Now().Add(patience)
	for {
		err := ts.Exec(args[0], args[1:]...)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%q fails still: %v", args, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
