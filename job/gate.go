package job

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The gate. A lock is asked for in the name of the process that will use it, so
// that process has to exist before the lock is granted. It is a child that has
// executed this same program again, waits on a socket, and executes the command
// when it is told to; the process number stays the same. Should we die first, the
// socket closes and the child goes.
//
// What goes through the gate is a list of fields that end in a zero byte: the mask
// of the signals to ignore, in hexadecimal; each variable to set (NAME=VALUE) or to
// unset (NAME); and an empty field, without which nothing is executed. A descriptor
// for the command comes with the first byte. What comes back is the number of the
// error that exec had, or the end of the file when it had none.

// gateName is what a process is called that waits at the gate.
const gateName = "job-gate"

// maxOpening bounds what is read at the gate; the kernel allows an environment of
// at most 6 MiB (execve(2)).
const maxOpening = 8 << 20

// firstInherited is where the descriptors begin that commands inherit from us: out of
// the way of the numbers that scripts use.
const firstInherited = 100

// AtGate must be the first call in main of a program that uses this package. In
// the processes that a Job makes of the program it does not return.
func AtGate() {
	if len(os.Args) < 3 {
		return
	}
	name, args := os.Args[0], os.Args[1:]
	sock, err := strconv.Atoi(args[0])
	if err != nil || sock < 3 {
		return
	}
	switch {
	case name == gateName && len(args) >= 5:
		parent, err := strconv.Atoi(args[1])
		if err != nil {
			return
		}
		os.Exit(waitAtGate(sock, parent, args[2] == ownGroup, args[3], args[4:]))
	case name == launchName:
		os.Exit(launch(sock, args[1:]))
	case name == guardName:
		os.Exit(guardMain(sock, args[1]))
	}
}

const (
	ownGroup    = "own"
	sharedGroup = "shared"
)

// waitAtGate is the life of the child. Its exit status matters to nobody: an error
// is in what it writes, and without a word from the parent there is no command.
func waitAtGate(sock, parent int, own bool, path string, argv []string) int {
	unix.CloseOnExec(sock)
	// The kernel is to kill the command when our parent dies. That is an attribute
	// of a thread (prctl(2)), and the one that executes the command may not be the
	// one that had it from fork.
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGKILL), 0, 0, 0); err != nil {
		return refuse(sock, err)
	}
	if unix.Getppid() != parent {
		return 0 // it has died already, and what it may have written counts no more
	}
	// What a terminal sends goes to us as well, and is for the parent to act upon.
	drop := make(chan os.Signal, 1)
	for _, s := range slices.Concat(forwarded, forwardedStops, []syscall.Signal{syscall.SIGTTIN, syscall.SIGTTOU}) {
		if !signal.Ignored(s) {
			signal.Notify(drop, s)
		}
	}
	ignore, changes, inherited, ok := readOpening(sock)
	if !ok {
		return 0
	}
	tty := openTerminal()
	if own {
		foreground := tty.ours()
		if err := unix.Setpgid(0, 0); err != nil {
			return refuse(sock, err)
		}
		if foreground {
			tty.set(unix.Getpid())
		}
	}
	signal.Reset() // from here on a signal does to us what it would to the command
	for s := syscall.Signal(1); s < 64; s++ {
		if ignore>>(s-1)&1 == 1 {
			signal.Ignore(s)
		}
	}
	return refuse(sock, execute(path, argv, changes, inherited))
}

// execute executes a command in this process. It returns only with an error.
func execute(path string, argv, changes []string, inherited int) error {
	if inherited >= 0 {
		if _, err := inheritable(inherited); err != nil {
			return err
		}
	}
	env := changeEnviron(os.Environ(), changes)
	err := syscall.Exec(path, argv, env)
	if err == syscall.ENOEXEC {
		// A script without an interpreter line: execvp has the shell read it.
		err = syscall.Exec("/bin/sh", append([]string{"/bin/sh", path}, argv[1:]...), env)
	}
	return err
}

// Replace executes the command in this process, with the changes and the file that
// [Job.Open] has. It returns only with an error, a [StartError].
func Replace(argv, changes []string, inherited *os.File) error {
	if len(argv) == 0 || argv[0] == "" {
		return &StartError{Err: errors.New("empty command")}
	}
	path, err := lookPath(argv[0])
	if err == nil {
		fd := -1
		if inherited != nil {
			fd = int(inherited.Fd())
		}
		err = execute(path, argv, changes, fd)
	}
	return &StartError{Name: argv[0], Err: err}
}

func refuse(sock int, err error) int {
	errno := syscall.Errno(0)
	if !errors.As(err, &errno) {
		errno = syscall.EIO
	}
	_, _ = syscall.Write(sock, strconv.AppendInt(nil, int64(errno), 10))
	return CodeNotExecutable
}

// readOpening reads what goes through the gate. It is not ok when the parent has
// gone before it had said all.
func readOpening(sock int) (ignore uint64, changes []string, inherited int, ok bool) {
	inherited = -1
	var text []byte
	buf := make([]byte, 64<<10)
	oob := make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, _, _, err := unix.Recvmsg(sock, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 || len(text)+n > maxOpening {
			return 0, nil, -1, false
		}
		if fd := received(oob[:oobn]); fd >= 0 {
			inherited = fd
		}
		text = append(text, buf[:n]...)
		if bytes.HasSuffix(text, []byte{0, 0}) {
			break
		}
	}
	fields := strings.Split(strings.TrimSuffix(string(text), "\x00\x00"), "\x00")
	ignore, err := strconv.ParseUint(fields[0], 16, 64)
	return ignore, fields[1:], inherited, err == nil
}

// changeEnviron sets and unsets variables.
func changeEnviron(env, changes []string) []string {
	for _, c := range changes {
		name, _, set := strings.Cut(c, "=")
		env = slices.DeleteFunc(env, func(v string) bool { return strings.HasPrefix(v, name+"=") })
		if set {
			env = append(env, c)
		}
	}
	return env
}

// gate is the parent's end.
type gate struct{ file *os.File }

// newGate makes both ends. The child's is not close-on-exec, and out of the way of
// what the command is to inherit.
func newGate() (*gate, int, error) {
	if _, err := os.Stat("/proc/self/exe"); err != nil {
		return nil, -1, fmt.Errorf("this needs /proc to be mounted: %w", errors.ErrUnsupported)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, -1, fmt.Errorf("make a socket pair: %w", err)
	}
	child, err := inheritable(pair[1])
	_ = unix.Close(pair[1])
	if err != nil {
		_ = unix.Close(pair[0])
		return nil, -1, fmt.Errorf("find a free descriptor: %w (raise ulimit -n)", err)
	}
	return &gate{os.NewFile(uintptr(pair[0]), "gate")}, child, nil
}

// inheritable copies a descriptor to one that is inherited, out of the way if the
// limit on open files allows.
func inheritable(fd int) (int, error) {
	for _, from := range []int{firstInherited, firstInherited / 2, 10} {
		if high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD, from); err == nil {
			return high, nil
		}
	}
	return unix.FcntlInt(uintptr(fd), unix.F_DUPFD, 3)
}

// open has the command executed. The error is exec's.
func (g *gate) open(ignore uint64, changes []string, inherited *os.File) error {
	var text bytes.Buffer
	fmt.Fprintf(&text, "%x\x00", ignore)
	for _, c := range changes {
		if c == "" || strings.Contains(c, "\x00") {
			return fmt.Errorf("%q cannot be in an environment", c)
		}
		text.WriteString(c + "\x00")
	}
	text.WriteByte(0)
	rest := text.Bytes()
	if inherited != nil {
		rights := unix.UnixRights(int(inherited.Fd()))
		if err := unix.Sendmsg(int(g.file.Fd()), rest[:1], rights, nil, 0); err != nil {
			return errFallen(err)
		}
		rest = rest[1:]
	}
	if _, err := g.file.Write(rest); err != nil {
		return errFallen(err)
	}
	answer, err := io.ReadAll(io.LimitReader(g.file, 16))
	if err != nil {
		return errFallen(err)
	}
	if len(answer) == 0 {
		return nil
	}
	errno, err := strconv.Atoi(string(answer))
	if err != nil || errno <= 0 {
		return errFallen(fmt.Errorf("answer %q", answer))
	}
	return syscall.Errno(errno)
}

// ErrFallen is what Open's error wraps when the process at the gate was killed.
var ErrFallen = errors.New("the process that was to run it has ended")

func errFallen(err error) error { return fmt.Errorf("%w: %w", ErrFallen, err) }

// ignored is the mask of the signals that this program leaves ignored, for the
// command to inherit.
func ignored() uint64 {
	var mask uint64
	for s := syscall.Signal(1); s < 64; s++ {
		if signal.Ignored(s) {
			mask |= 1 << (s - 1)
		}
	}
	return mask
}
