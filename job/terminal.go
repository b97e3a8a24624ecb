package job

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// terminal is the controlling terminal. All methods may be called on nil, which
// stands for a process that has none.
type terminal struct{ fd int }

// openTerminal finds the controlling terminal by its own name and not by standard
// input: ssh and sudo ask for passwords there whatever standard input is.
func openTerminal() *terminal {
	fd, err := unix.Open("/dev/tty", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	return &terminal{fd: fd}
}

func (t *terminal) close() {
	if t != nil {
		_ = unix.Close(t.fd)
	}
}

// foreground is the process group that has the terminal, 0 if there is none.
func (t *terminal) foreground() int {
	if t == nil {
		return 0
	}
	pgrp, err := unix.IoctlGetInt(t.fd, unix.TIOCGPGRP)
	if err != nil {
		return 0
	}
	return pgrp
}

// ours says whether our process group has the terminal.
func (t *terminal) ours() bool { return t != nil && t.foreground() == unix.Getpgrp() }

// handOver gives the terminal to a process group if we have it.
func (t *terminal) handOver(pgrp int) {
	if t.ours() {
		t.set(pgrp)
	}
}

// takeBack takes the terminal from a process group if that has it.
func (t *terminal) takeBack(pgrp int) {
	if t != nil && t.foreground() == pgrp {
		t.set(unix.Getpgrp())
	}
}

// set moves the terminal with SIGTTOU blocked: from the background the kernel
// would stop us for it otherwise (tcsetpgrp(3)). Blocked in one thread and not
// ignored in all, so that it is not inherited by anyone.
func (t *terminal) set(pgrp int) {
	var block, old unix.Sigset_t
	block.Val[(int(syscall.SIGTTOU)-1)/64] |= 1 << ((uint(syscall.SIGTTOU) - 1) % 64)
	done := lockThread()
	defer done()
	if unix.PthreadSigmask(unix.SIG_BLOCK, &block, &old) != nil {
		return
	}
	// It fails when the terminal has hung up, and then nobody needs it.
	_ = unix.IoctlSetPointerInt(t.fd, unix.TIOCSPGRP, pgrp)
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil)
}

// aloneInGroup says whether nobody else can be in our process group, without
// reading the process table: the group is named for us, and we are not joined to
// other members by a pipe. It errs towards company, which costs nothing but the
// passing on of a SIGINT that was sent to us alone.
func aloneInGroup() bool {
	if unix.Getpid() != unix.Getpgrp() {
		return false
	}
	for fd := range 3 {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil {
			continue
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFIFO, unix.S_IFSOCK:
			return false
		}
	}
	return true
}

// orphanedGroup says whether our process group is orphaned, given that we are
// alone in it: no shell of our session watches over it.
func orphanedGroup() bool {
	parent := unix.Getppid()
	psid, err := unix.Getsid(parent)
	if err != nil {
		return true
	}
	sid, err := unix.Getsid(0)
	if err != nil || sid != psid {
		return true
	}
	pgrp, err := unix.Getpgid(parent)
	return err != nil || pgrp == unix.Getpgrp()
}

// HasTerminal says whether this process has a controlling terminal.
func HasTerminal() bool {
	t := openTerminal()
	t.close()
	return t != nil
}
