package self

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/freezer/checkpoint"
)

// Signals that ask a program to checkpoint itself: SIGRTMIN+6 and +7 of glibc, by number
// because other C libraries count from elsewhere.
const (
	SIGCKPT     = syscall.Signal(40) // and go on
	SIGCKPTEXIT = syscall.Signal(41) // and end
)

// markName is the name of a file in memory that a Go program has open that looks at the
// signals. It is checkpointed with the program.
const markName = "lockerd looks at SIGCKPT"

// Notify has [SIGCKPT] and [SIGCKPTEXIT] sent to c (see [signal.Notify]), and lets
// [Catches] know.
func Notify(c chan<- os.Signal) error {
	fd, err := unix.MemfdCreate(markName, unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("let others know that we look at signals: %w", err)
	}
	_ = fd // as long as the process lives
	signal.Notify(c, SIGCKPT, SIGCKPTEXIT)
	return nil
}

// Catches says whether a process has a handler for a signal. A Go program has one for all
// signals, whether it looks at them or not, so of a process that seems to catch every
// one of SIGCKPT's kind it is believed only if it has called [Notify].
func Catches(pid int, sig syscall.Signal) (bool, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	text, err := os.ReadFile(dir + "/status")
	if err != nil {
		return false, fmt.Errorf("look for the handlers of process %d: %w", pid, err)
	}
	_, rest, _ := strings.Cut(string(text), "\nSigCgt:\t")
	word, _, _ := strings.Cut(rest, "\n")
	caught, err := strconv.ParseUint(word, 16, 64)
	if err != nil {
		return false, fmt.Errorf("look for the handlers of process %d: SigCgt is %.40q", pid, word)
	}
	has := func(s int) bool { return s >= 1 && s <= 64 && caught&(1<<(s-1)) != 0 }
	if !has(int(sig)) {
		return false, nil
	}
	for s := 35; s <= 64; s++ {
		if !has(s) {
			return true, nil
		}
	}
	return marked(dir + "/fd")
}

// Forward sends a signal to the eldest process of a tree that catches it ([Catches]), and
// returns which that was: 0 if there is none.
func Forward(root int, sig syscall.Signal) (pid int, err error) {
	all, err := checkpoint.Processes(root)
	if err != nil {
		return 0, err
	}
	for _, pid := range all {
		if sent, err := forward(pid, sig); sent || err != nil {
			return pid, err
		}
	}
	return 0, nil
}

// forward says whether the process was sent the signal. That it has ended is no error.
func forward(pid int, sig syscall.Signal) (sent bool, err error) {
	// What is found out of the number is of the process behind the descriptor, or that has
	// ended and gets no signal.
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false, nil
	}
	defer unix.Close(fd)
	if caught, err := Catches(pid, sig); !caught || err != nil {
		return false, nil
	}
	switch err := unix.PidfdSendSignal(fd, sig, nil, 0); err {
	case nil:
		return true, nil
	case unix.ESRCH:
		return false, nil
	default:
		return false, fmt.Errorf("send process %d signal %d: %w", pid, int(sig), err)
	}
}

func marked(dir string) (bool, error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	for _, n := range names {
		if link, _ := os.Readlink(dir + "/" + n.Name()); strings.HasPrefix(link, "/memfd:"+markName) {
			return true, nil
		}
	}
	return false, nil
}
