package job

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// forwarded lists the signals that are passed on. What stops, continues or
// resizes is taken only while a command runs.
var (
	forwarded = []syscall.Signal{
		syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM,
	}
	forwardedStops = []syscall.Signal{syscall.SIGTSTP, syscall.SIGCONT, syscall.SIGWINCH}
)

// Notify takes over the signals that a command is to get, for the time before
// there is one as well: the channel is read by the caller first and goes to
// [Start] in Options.Signals later, so that no signal falls between the two. A
// signal that was ignored when the program started stays ignored and is inherited
// so (nohup, background jobs of a shell without job control).
func Notify() chan os.Signal {
	ch := make(chan os.Signal, 64)
	if signal.Ignored(syscall.SIGINT) {
		// The Go runtime keeps SIG_IGN for SIGHUP and SIGINT alone, but a shell
		// ignores SIGQUIT in the same breath as SIGINT (POSIX.1-2024, 2.11).
		signal.Ignore(syscall.SIGQUIT)
	}
	for _, s := range forwarded {
		if !signal.Ignored(s) {
			signal.Notify(ch, s)
		}
	}
	return ch
}

// Release undoes [Notify].
func Release(ch chan os.Signal) { signal.Stop(ch) }

// Interrupt ends this process by SIGINT, without a core file and without the
// deferred functions of anybody. It returns only where SIGINT is blocked.
func Interrupt() {
	signal.Reset(syscall.SIGINT)
	if syscall.Kill(syscall.Getpid(), syscall.SIGINT) == nil {
		time.Sleep(100 * time.Millisecond) // any thread may get it first
	}
}

// stopSignals is the share of the forwarded signals that is taken over only while
// a command runs.
type stopSignals struct{ ch chan os.Signal }

func notifyStops() *stopSignals {
	s := &stopSignals{ch: make(chan os.Signal, 16)}
	for _, n := range forwardedStops {
		if !signal.Ignored(n) {
			signal.Notify(s.ch, n)
		}
	}
	return s
}

func (s *stopSignals) stop() {
	if s.ch != nil {
		signal.Stop(s.ch)
	}
}

// fromTerminal says whether a terminal sends the signal to its foreground group.
func fromTerminal(s syscall.Signal) bool {
	switch s {
	case syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTSTP, syscall.SIGWINCH:
		return true
	}
	return false
}

// ParseSignal reads a signal as kill(1) takes it: TERM, SIGTERM, -TERM, 15, in
// any case.
func ParseSignal(text string) (syscall.Signal, error) {
	name := strings.ToUpper(strings.TrimPrefix(text, "-"))
	if n, err := strconv.Atoi(name); err == nil {
		if n < 1 || n > 64 {
			return 0, fmt.Errorf("no signal %q: numbers go from 1 to 64", text)
		}
		return syscall.Signal(n), nil
	}
	if s := unix.SignalNum("SIG" + strings.TrimPrefix(name, "SIG")); s != 0 {
		return s, nil
	}
	return 0, fmt.Errorf("no signal %q", text)
}
