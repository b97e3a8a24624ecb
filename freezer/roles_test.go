package freezer

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The roles are what the processes do that tests freeze. Many of them at once are
// forked without exec: then a child must not use anything of the Go runtime, whose
// other threads it does not have, and does nothing but system calls. Not even the check of
// the stack at the beginning of a function: if the scheduler wanted the processor back at the
// time of the fork, the child would ask it what to do next, and wait for ever. So those that
// go on for long are nosplit.
var roles = map[string]func([]string){
	"sleepers":   playSleepers,
	"bomb":       playBomb,
	"hopper":     playHopper,
	"named":      playNamed,
	"leaderless": playLeaderless,
	"parent":     playParent,
	"vfork":      playVfork,
	"requester":  playRequester,
	"freezethaw": playFreezeThaw,
	"rescuer":    playRescuer,
	"writer":     playWriter,
	"fs":         playFS,
	"fsholder":   playFSHolder,
	"executor":   playExecutor,
	"contained":  playContained,
	"blind":      playBlind,
	"inner":      playInner,
	"server":     playServer,
	"weak":       playWeak,
	"witness":    playWitness,
}

//go:norace
//go:nosplit
func fork() uintptr {
	pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 {
		return ^uintptr(0)
	}
	return pid
}

// giveWay leaves the processors to the tests, and to whoever else is on the machine.
func giveWay() { _ = unix.Setpriority(unix.PRIO_PROCESS, 0, 10) }

//go:norace
//go:nosplit
func pauseForever() {
	for {
		_, _, _ = syscall.RawSyscall6(syscall.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
	}
}

//go:norace
//go:nosplit
func exit() { _, _, _ = syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 0, 0, 0) }

// untilClosed waits for the end of the test.
func untilClosed() { _, _ = io.Copy(io.Discard, os.Stdin) }

func count(args []string) int {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		panic(err)
	}
	return n
}

// playSleepers has N children that sleep.
func playSleepers(args []string) {
	for range count(args) {
		if fork() == 0 {
			pauseForever()
		}
	}
	fmt.Println("ready")
	untilClosed()
	os.Exit(0)
}

// shared is a counter in memory that forked processes share.
func shared() *atomic.Int64 {
	b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANON)
	if err != nil {
		panic(err)
	}
	return (*atomic.Int64)(unsafe.Pointer(unsafe.SliceData(b)))
}

// playBomb forks until there are N of it, each in turn forking, and all stay busy.
func playBomb(args []string) {
	most, total := int64(count(args)), shared()
	giveWay()
	breed(total, most)
	fmt.Println("ready")
	untilClosed()
	os.Exit(0)
}

//go:norace
//go:nosplit
func breed(total *atomic.Int64, most int64) {
	if fork() != 0 {
		return
	}
	for {
		if total.Load() >= most {
			_, _, _ = syscall.RawSyscall(syscall.SYS_GETPPID, 0, 0, 0)
			continue
		}
		total.Add(1)
		_ = fork() // both go on
	}
}

// playHopper has a child that forks and ends, whose child does the same, until stdin is
// closed.
func playHopper([]string) {
	over, hops := shared(), shared()
	giveWay()
	hop((*int64)(unsafe.Pointer(over)), (*int64)(unsafe.Pointer(hops)))
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		fmt.Println(hops.Load())
	}
	over.Store(1)
	os.Exit(0)
}

// hop goes without package atomic, which in a child can wait for a lock of the race detector's that
// another thread had. There is only one at a time to count.
//
//go:norace
//go:nosplit
func hop(over, hops *int64) {
	if fork() != 0 {
		return
	}
	for *over == 0 {
		switch fork() {
		case 0:
			*hops++
		case ^uintptr(0): // again
		default:
			exit()
		}
	}
	exit()
}

// playNamed calls itself by a name that looks like the rest of proc_pid_stat(5).
func playNamed([]string) {
	if err := os.WriteFile("/proc/self/comm", []byte("x) T 1 (y Z"), 0); err != nil {
		panic(err)
	}
	fmt.Println("ready")
	untilClosed()
	os.Exit(0)
}

// playLeaderless ends its first thread, while another counts.
func playLeaderless([]string) {
	counter := shared()
	go func() {
		for {
			counter.Add(1)
			_, _, _ = syscall.RawSyscall(syscall.SYS_SCHED_YIELD, 0, 0, 0)
		}
	}()
	go func() {
		fmt.Println("ready")
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			fmt.Println(counter.Load())
		}
		exit()
	}()
	if unix.Gettid() != os.Getpid() { // the program's init has locked it there
		panic("not the first thread")
	}
	_, _, _ = syscall.Syscall(syscall.SYS_EXIT, 0, 0, 0)
}

func init() { runtime.LockOSThread() }

// playParent has N descendants in one line and M other children of each. All of the
// line look all the time whether a child has stopped, or wait for it as a shell does. For each line of
// input it says how often one had.
func playParent(args []string) {
	seen, deep, over := shared(), shared(), shared()
	line, others := int64(count(args)), count(args[1:])
	giveWay()
	depth := int64(0)
	for depth = deep.Add(1); depth <= line && fork() == 0; {
		depth = deep.Add(1)
	}
	for range others {
		if fork() == 0 {
			pauseForever()
		}
	}
	var status syscall.WaitStatus
	flags := uintptr(syscall.WUNTRACED | syscall.WNOHANG)
	if depth%2 == 0 { // and is in the way of its own stop
		flags = syscall.WUNTRACED
	}
	watch := func() {
		pid, _, _ := syscall.RawSyscall6(syscall.SYS_WAIT4, ^uintptr(0), uintptr(unsafe.Pointer(&status)),
			flags, 0, 0, 0)
		if int(pid) > 0 && status.Stopped() {
			seen.Add(1)
		}
	}
	if os.Getpid() != first {
		for over.Load() == 0 {
			watch()
		}
		exit()
	}
	fmt.Println("ready")
	go func() {
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			fmt.Println(seen.Load())
		}
		over.Store(1)
	}()
	for over.Load() == 0 {
		watch()
	}
	os.Exit(0)
}

var first = os.Getpid()

// playVfork waits in uninterruptible sleep for a child that never executes anything:
// its only thread, or with an argument one of several, and not the first.
func playVfork(args []string) {
	if len(args) > 0 {
		go playVfork(nil)
		untilClosed()
	}
	fmt.Println("ready")
	const cloneVfork = 0x4000
	pid, _, _ := syscall.RawSyscall6(syscall.SYS_CLONE, cloneVfork|uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if pid == 0 {
		pauseForever()
	}
	os.Exit(1)
}

// playRequester freezes a tree by a guard, and waits. Arguments: the root, the timeout,
// whether to detach, and the lease, if any, that it renews.
func playRequester(args []string) {
	timeout, err := time.ParseDuration(args[1])
	if err != nil {
		panic(err)
	}
	g, err := Start(context.Background(), "")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready")
	lease := time.Duration(0)
	if len(args) > 3 {
		lease = must(time.ParseDuration(args[3]))
	}
	_, err = g.Freeze(context.Background(), Order{
		Targets: []Target{Tree(count(args))}, Timeout: timeout, Detach: args[2] == "true", Lease: lease,
	})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	s, err := g.State()
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("frozen", s.Guard, s.ID)
	if lease > 0 {
		for g.Err() == nil {
			g.Renew()
			time.Sleep(lease / 20)
		}
		fmt.Println("over:", g.Err())
	}
	untilClosed()
	os.Exit(0)
}

// playFreezeThaw calls FreezeThaw on a tree and waits in it for stdin's end.
func playFreezeThaw(args []string) {
	fmt.Println("ready")
	err := FreezeThaw(context.Background(), Order{Targets: []Target{Tree(count(args))}}, func() error {
		fmt.Println("frozen")
		untilClosed()
		return nil
	})
	fmt.Println("over:", err)
	os.Exit(0)
}

// playWitness has a child, and for each line of input says how often it has noticed that
// one of the two was stopped or continued: by a signal, or by waiting for the child.
func playWitness([]string) {
	var noticed atomic.Int64
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGCONT, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU)
	go func() {
		for range signals {
			noticed.Add(1)
		}
	}()
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), roleVariable+"=sleepers 0")
	in, out := must(child.StdinPipe()), must(child.StdoutPipe())
	defer in.Close()
	if err := child.Start(); err != nil {
		panic(err)
	}
	_ = must(bufio.NewReader(out).ReadString('\n'))
	go func() {
		for {
			var status syscall.WaitStatus
			if _, err := syscall.Wait4(child.Process.Pid, &status, syscall.WUNTRACED|unix.WCONTINUED, nil); err == nil {
				noticed.Add(1)
			}
		}
	}()
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		fmt.Println(noticed.Load(), child.Process.Pid)
	}
	os.Exit(0)
}

// playWeak carries out N orders of a spec by guards that may not go first (capabilities(7)),
// and prints the reasons of what is logged.
func playWeak(args []string) {
	if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_NICE, 0, 0, 0); err != nil {
		panic(err)
	}
	x := must(NewExecutor(ExecutorConfig{Procs: true, Log: func(_ string, args ...any) { fmt.Println(args[len(args)-1]) }}))
	fmt.Println("ready")
	for range count(args) {
		p := must(x.Prepare(context.Background(), 7, ActionFreeze, []byte(args[1]), time.Minute, 0))
		must(p.Freeze(context.Background()))
		if err := p.Thaw(); err != nil {
			panic(err)
		}
	}
	fmt.Println("over")
	untilClosed()
	os.Exit(0)
}

// playExecutor prepares and freezes by an executor, and waits. Arguments: the action,
// the spec and the hooks directory, if any.
func playExecutor(args []string) {
	c := ExecutorConfig{Procs: true, FS: true}
	if len(args) > 2 {
		c.HooksDir = args[2]
	}
	x, err := NewExecutor(c)
	if err != nil {
		panic(err)
	}
	fmt.Println("ready")
	p, err := x.Prepare(context.Background(), 7, args[0], []byte(args[1]), 10*time.Minute, 0)
	if err == nil {
		_, err = p.Freeze(context.Background())
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("frozen")
	untilClosed()
	os.Exit(0)
}
