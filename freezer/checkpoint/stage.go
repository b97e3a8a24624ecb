package checkpoint

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Names, in place of the program's, of the processes that this package starts of it.
const (
	stageName  = "checkpoint-stage"
	probeName  = "checkpoint-probe"
	probeAlone = "checkpoint-probe-alone"
)

// stageSocket is the descriptor of a stage's socket.
const stageSocket = 3

// AtStage must be the first call in main of a program that uses this package. In the
// processes that it starts of that program it does not return.
func AtStage() {
	if len(os.Args) != 1 {
		return
	}
	switch os.Args[0] {
	case stageName:
		os.Exit(stageMain())
	case probeName:
		os.Exit(leaveProbeAlone())
	case probeAlone:
		os.Exit(probeMain())
	}
}

// stage is a process that stands between us and the eldest one: the first of a pid
// namespace, or the last of the leaders.
type stage struct {
	cmd    *exec.Cmd
	socket *os.File
	mu     sync.Mutex // of writes to the socket
	said   *json.Decoder
}

// report is what a stage says: first that the job runs or why not, and then how it has
// ended.
type report struct {
	Failed string              // why not
	CRIU   bool                // CRIU failed, and has a log
	Class  Class               // of the failure
	Errno  syscall.Errno       //
	Ended  bool                //
	Status *syscall.WaitStatus // with Ended
}

// startStage returns when the job runs.
func startStage(ctx context.Context, o *restoreOrder, input *os.File) (s *stage, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "stage"), os.NewFile(uintptr(pair[1]), "stage")
	defer theirs.Close()
	s = &stage{cmd: exec.Command("/proc/self/exe"), socket: ours, said: json.NewDecoder(ours)}
	s.cmd.Args = []string{stageName}
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = input, os.Stdout, os.Stderr
	s.cmd.ExtraFiles = []*os.File{theirs}
	if o.Namespace {
		s.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	}
	if err := s.cmd.Start(); err != nil {
		_ = ours.Close()
		return nil, fmt.Errorf("start a stage: %w", err)
	}
	_ = theirs.Close()
	stop := context.AfterFunc(ctx, s.giveUp)
	var r report
	if err = json.NewEncoder(ours).Encode(o); err == nil {
		err = s.said.Decode(&r)
	}
	if !stop() {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = r.error()
	}
	if err != nil {
		s.giveUp() // it may have restored the job, and may not have heard it before
		_ = ours.Close()
		_ = s.cmd.Wait()
		return nil, err
	}
	return s, nil
}

func (r *report) error() error {
	switch {
	case r.CRIU:
		return errCRIU
	case r.Failed != "":
		return fail(r.Class, r.Errno, "%s", r.Failed)
	}
	return nil
}

// wait waits for the end of the eldest process. The stage may have others to wait for.
func (s *stage) wait() (status syscall.WaitStatus, err error) {
	var r report
	err = s.said.Decode(&r)
	go func() { _ = s.cmd.Wait() }() // until the last of the job has ended
	if err != nil || r.Status == nil {
		return 0, errors.New("the process that stands between us and the job was killed")
	}
	return *r.Status, nil
}

// giveUp has the stage end the job, whether that is restored or not.
func (s *stage) giveUp() { _ = s.signal(giveUp) }

func (s *stage) signal(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return json.NewEncoder(s.socket).Encode(sig)
}

// stageMain is the life of a stage.
func stageMain() int {
	sock := os.NewFile(stageSocket, "stage")
	in := json.NewDecoder(sock)
	out := json.NewEncoder(sock)
	var o restoreOrder
	var err error
	if text := os.Getenv(orderVariable); text != "" {
		_ = os.Unsetenv(orderVariable)
		err = json.Unmarshal([]byte(text), &o)
	} else {
		err = in.Decode(&o)
	}
	if err != nil {
		return 1
	}
	if o.Namespace {
		err = enterNamespace()
		o.Namespace = false
	}
	if err == nil && len(o.Leaders) > 0 {
		var pid int
		if pid, err = o.next(); err == nil {
			_ = sock.Close()
			return reap(pid, func(syscall.WaitStatus) {})
		}
	}
	if err == nil {
		unix.CloseOnExec(stageSocket)
		err = o.stage(in)
	}
	if err != nil {
		r := report{Failed: err.Error(), Class: Env, Errno: syscall.EIO, CRIU: errors.Is(err, errCRIU)}
		if e := (*Error)(nil); errors.As(classed(err, "start the job"), &e) {
			r.Class, r.Errno = e.Class, e.Errno
		}
		_ = out.Encode(r)
		return 1
	}
	_ = out.Encode(report{})
	return reap(o.Root, func(status syscall.WaitStatus) { _ = out.Encode(report{Ended: true, Status: &status}) })
}

// stage restores the job, and then passes on to it what comes through the socket. Who is at the
// other end may end: a job that is restored by then does not notice, and no other is.
func (o *restoreOrder) stage(in *json.Decoder) error {
	ctx, cancel := context.WithCancel(context.Background())
	restored := make(chan struct{})
	go func() { // as long as we are asked
		for {
			var sig syscall.Signal
			if in.Decode(&sig) != nil {
				cancel() // nobody wants what is not restored yet
				return
			}
			if sig == giveUp {
				cancel()
			}
			<-restored
			switch sig {
			case giveUp:
				o.kill()
			case resume:
				o.resume()
			default:
				_ = syscall.Kill(o.Root, sig)
			}
		}
	}()
	err := o.restore(ctx, os.Stdin)
	if err == nil { // or we are about to end
		close(restored)
	}
	return err
}

// What a stage is told instead of a signal.
const (
	resume syscall.Signal = -1 // let the processes run
	giveUp syscall.Signal = -2 // end them, and do not go on with restoring them
)

// orderVariable has the order of a stage that a stage starts.
const orderVariable = "LOCKERD_CHECKPOINT_STAGE"

// next starts the next stage as the first of the leaders that are left.
func (o *restoreOrder) next() (pid int, err error) {
	first := o.Leaders[0]
	o.Leaders = o.Leaders[1:]
	text, err := json.Marshal(o)
	if err != nil {
		return 0, err
	}
	return startAs(first, stageName, append(os.Environ(), orderVariable+"="+string(text)))
}

// reap waits for all children, and calls with the status of one of them.
func reap(pid int, ended func(syscall.WaitStatus)) int {
	for {
		var status syscall.WaitStatus
		got, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return 0
		case got == pid:
			ended(status)
		}
	}
}

// enterNamespace makes the new pid namespace one that CRIU can restore in.
func enterNamespace() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("keep our mounts to ourselves: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	// Small numbers may be wanted by the job, so CRIU's own are to be large.
	limit, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		return err
	}
	var most int
	if _, err := fmt.Sscan(strings.TrimSpace(string(limit)), &most); err != nil {
		return fmt.Errorf("read pid_max: %w", err)
	}
	err = os.WriteFile("/proc/sys/kernel/ns_last_pid", fmt.Append(nil, most-largeNumbers), 0o644)
	if err != nil {
		return fmt.Errorf("choose process numbers: %w", err)
	}
	return nil
}

// largeNumbers is how many process numbers CRIU may need.
const largeNumbers = 1000

// probeInterval is how often a probe looks whether it is alone.
const probeInterval = 200 * time.Millisecond

// leaveProbeAlone starts the probe without the descriptors that whoever started us has left open:
// they may be of mounts that CRIU does not find, which says nothing of the host. The runtime has some
// of its own by now, so they are closed with them, by exec.
func leaveProbeAlone() int {
	if unix.CloseRange(stageSocket+1, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		_ = unix.Exec("/proc/self/exe", []string{probeAlone}, os.Environ())
	}
	return 1
}

// probeMain is what the preflight checkpoints: it listens at a port, says which, and
// waits to be killed, or for the end of who has started it.
func probeMain() int {
	parent := os.Getppid() // also when it was restarted
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	if err == nil {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		return 1
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return 1
	}
	out := os.NewFile(stageSocket, "port")
	if _, err := fmt.Fprintln(out, name.(*unix.SockaddrInet4).Port); err != nil {
		return 1 // nobody reads it: the parent above is not ours any more
	}
	_ = out.Close()
	for os.Getppid() == parent {
		time.Sleep(probeInterval)
	}
	return 0
}
