package pidprobe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Numbers come round again. In a pid namespace of its own a process may say when.
func TestReusedNumber(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a pid namespace takes root")
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "PIDPROBE_TEST_MAIN=reuse")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	x := startCmd(t, cmd)
	for _, want := range []string{
		"the first: alive",
		"its number, from a cache: alive",
		"asked for by its birth: 1",
		"word of its end: UNKN 100 na h",
		"the second has the number: true",
		"without a pidfd, a watch of the first: dead",
		"the second: alive",
		"the first: dead",
		"the first, by its birth: EXIS 100 0 h",
		"the same of another server: EXIS 100 0 h",
		"the number alone: EXIS 100 1 h and a birth",
		"its number, from a cache: alive",
		"a signal to the first: the process has ended",
		"a watch of the first: dead",
		"the second: alive",
		"with the /proc of another namespace: unknown",
	} {
		if got := x.line(); got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	}
}

// reuse is the program: process 1 of a namespace.
func reuse() {
	if err := playReuse(); err != nil {
		fmt.Println(err)
	}
}

func playReuse() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return err
	}
	foreign := checkWithout(Process{PID: 1, Start: 1})
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	ownProc = func() bool { return true } // the answer of before was for the other /proc
	first, err := numbered100()
	if err != nil {
		return err
	}
	one, err := Lookup(100)
	if err != nil {
		return err
	}
	cache := newLookout()
	fromCache := func() Verdict {
		v := make([]Verdict, 1)
		cache.look([]int32{100}, v)
		return v[0]
	}
	fmt.Println("the first:", Check(one))
	fmt.Println("its number, from a cache:", fromCache())
	polledDead := make(chan Process, 1)
	polls, err := NewWatcher(func(p Process) { polledDead <- p }, nil)
	if err != nil {
		return err
	}
	polls.budget = 0
	if err := polls.Watch(Process{PID: 100}); err != nil {
		return err
	}
	server, err := serveInNamespace()
	if err != nil {
		return err
	}
	exists, err := server("PIDR 100 h 10")
	if err != nil {
		return err
	}
	fmt.Println("asked for by its birth:", strings.TrimSuffix(strings.TrimPrefix(exists, "EXIS 100 "), " h "+one.birth()))
	_ = first.Process.Kill()
	_ = first.Wait()
	push, err := server("")
	if err != nil {
		return err
	}
	fmt.Println("word of its end:", push)
	time.Sleep(50 * time.Millisecond) // start times count in hundredths
	if _, err := numbered100(); err != nil {
		return err
	}
	two, err := Lookup(100)
	if err != nil {
		return err
	}
	fmt.Println("the second has the number:", two.PID == one.PID && two.Start > one.Start)
	if <-polledDead == (Process{PID: 100}) {
		fmt.Println("without a pidfd, a watch of the first: dead")
	}
	fmt.Println("the second:", Check(two))
	fmt.Println("the first:", Check(one))
	said, err := server("PIDR 100 h 10 " + one.birth())
	if err != nil {
		return err
	}
	fmt.Println("the first, by its birth:", said)
	if server, err = serveInNamespace(); err != nil {
		return err
	}
	if said, err = server("PIDR 100 h 10 " + one.birth()); err != nil {
		return err
	}
	fmt.Println("the same of another server:", said)
	if said, err = server("PIDR 100 h 10"); err != nil {
		return err
	}
	fmt.Println("the number alone:", strings.Replace(said, two.birth(), "and a birth", 1))
	fmt.Println("its number, from a cache:", fromCache())
	err = Signal(one, syscall.SIGKILL)
	for e := err; e != nil; e = errors.Unwrap(e) {
		err = e
	}
	fmt.Println("a signal to the first:", err)
	dead := make(chan Process, 1)
	w, err := NewWatcher(func(p Process) { dead <- p }, nil)
	if err != nil {
		return err
	}
	if err := w.Watch(one); err != nil {
		return err
	}
	if <-dead == one {
		fmt.Println("a watch of the first: dead")
	}
	fmt.Println("the second:", Check(two))
	fmt.Println("with the /proc of another namespace:", foreign)
	return nil
}

// serveInNamespace starts a server. The function returned asks it, if there is
// something to ask, and gives what comes next.
func serveInNamespace() (func(question string) (string, error), error) {
	conn, err := Listen(context.Background(), "127.0.0.1", 0)
	if err != nil {
		return nil, err
	}
	s, err := NewServer(conn, ServerConfig{})
	if err != nil {
		return nil, err
	}
	go func() { _ = s.Serve(context.Background()) }()
	c, err := net.Dial("udp", s.Addr().String())
	if err != nil {
		return nil, err
	}
	return func(question string) (string, error) {
		if question != "" {
			if _, err := c.Write([]byte(question)); err != nil {
				return "", err
			}
		}
		var b [maxDatagram]byte
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := c.Read(b[:])
		return string(b[:n]), err
	}, nil
}

// numbered100 starts a process as number 100.
func numbered100() (*exec.Cmd, error) {
	for range 20 {
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte("99"), 0o644); err != nil {
			return nil, err
		}
		cmd := exec.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		if cmd.Process.Pid == 100 {
			return cmd, nil
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	return nil, errors.New("no process got the number 100")
}
