package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// keeperScript runs CRIU, tells its status, and when the requester has ended removes the
// box, also if the status is nobody's any more. Descriptor 3 is the end of a pipe whose other end
// only the requester has, 4 one to tell the status through, 5 the lock of the box, 6 the box itself.
//
// A file that is too big is an error for CRIU, which it cleans up after, and not its end: see abort.
const keeperScript = `box=$1
shift
trap '' XFSZ
"$@" 3<&- 4>&- 6<&-
status=$?
trap '' PIPE
echo $status >&4
exec 4>&-
read -r never <&3
rm -rf /proc/self/fd/6/*
exec rmdir -- "$box"`

// hookScript is run by CRIU, which closes all descriptors that it does not know. When the
// images are complete, and the processes still held, it says so, and waits for a lock of
// the requester's to open. Without the file "go" CRIU lets the processes run on; so it
// does if the requester dies, because that opens the lock too.
const hookScript = `#!/bin/sh
cd "${0%/*}" || exit 1
[ "$CRTOOLS_SCRIPT_ACTION" = post-dump ] || exit 0
echo held 1<>held
exec flock verdict test -e go
`

// dumpLog is the name of CRIU's log in the box.
const dumpLog = "dump.log"

// keeper is a run of CRIU's dump, under a shell that outlives us.
type keeper struct {
	cmd      *exec.Cmd
	box      *box
	life     *os.File // closing it lets the keeper end
	status   *os.File // where the keeper tells CRIU's status
	held     *os.File // where the hook says that the processes are held; nil if they are not to be
	verdict  *os.File // locked until we have made up our mind
	finished chan error
	patience time.Duration // how long CRIU may take to give up
}

// startKeeper starts CRIU. With hold it stops before it lets go of the processes.
func startKeeper(b *box, criu string, args []string, hold bool) (_ *keeper, err error) {
	k := &keeper{box: b, finished: make(chan error, 1), patience: giveUpTime}
	var lifeEnd, statusEnd *os.File
	defer func() {
		closeAll(lifeEnd, statusEnd)
		if err != nil {
			closeAll(k.life, k.status, k.held, k.verdict)
		}
	}()
	if lifeEnd, k.life, err = os.Pipe(); err != nil {
		return nil, err
	}
	if k.status, statusEnd, err = os.Pipe(); err != nil {
		return nil, err
	}
	if hold {
		if err := k.prepareHold(); err != nil {
			return nil, err
		}
		args = append(args, "--action-script", b.path("hook"))
	}
	k.cmd = exec.Command("/bin/sh", append([]string{"-c", keeperScript, "checkpoint-keeper", b.dir, criu}, args...)...)
	k.cmd.ExtraFiles = []*os.File{lifeEnd, statusEnd, b.lock, b.at}
	said, err := saidFile(b.path(dumpLog))
	if err != nil {
		return nil, err
	}
	defer said.Close()
	k.cmd.Stdout, k.cmd.Stderr = said, said
	k.cmd.Dir = "/"
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := k.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start CRIU: %w", err)
	}
	go func() { k.finished <- k.result() }() // until CRIU ends, which it does at the latest when it is killed
	return k, nil
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}

func (k *keeper) prepareHold() (err error) {
	if err := os.WriteFile(k.box.path("hook"), []byte(hookScript), 0o700); err != nil {
		return err
	}
	if err := unix.Mkfifo(k.box.path("held"), 0o600); err != nil {
		return fmt.Errorf("make a pipe: %w", err)
	}
	if k.held, err = os.OpenFile(k.box.path("held"), os.O_RDWR|unix.O_NONBLOCK, 0); err != nil {
		return err
	}
	if k.verdict, err = os.OpenFile(k.box.path("verdict"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return err
	}
	if err := unix.Flock(int(k.verdict.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("lock %s: %w", k.verdict.Name(), err)
	}
	return nil
}

// errCRIU says that CRIU has a log to read.
var errCRIU = errors.New("CRIU failed")

// result waits for CRIU's status.
func (k *keeper) result() error {
	text, err := io.ReadAll(k.status)
	if err != nil {
		return err
	}
	switch status, err := strconv.Atoi(strings.TrimSpace(string(text))); {
	case err != nil:
		return fail(Temp, syscall.EINTR, "CRIU's keeper was killed")
	case status == 0:
		return nil
	case status > 128:
		return fail(Temp, syscall.EINTR, "CRIU was killed by signal %d", status-128)
	default:
		return errCRIU
	}
}

// waitHeld returns when the processes are held and the images are complete.
func (k *keeper) waitHeld(ctx context.Context) error {
	said := make(chan error, 1)
	go func() {
		_, err := k.held.Read(make([]byte, 16))
		said <- err
	}()
	select {
	case err := <-said:
		return err
	case err := <-k.finished:
		if err == nil {
			err = errors.New("CRIU ended without a word")
		}
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// wait returns when CRIU has ended.
func (k *keeper) wait(ctx context.Context) error {
	select {
	case err := <-k.finished:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// release tells CRIU, which holds the processes, to do as it was told.
func (k *keeper) release() error {
	f, err := os.OpenFile(k.box.path("go"), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_ = f.Close()
	return k.verdict.Close()
}

// end lets the processes run on, if they are still held, and waits for CRIU and the
// keeper. Afterwards nothing is left of the box, and there is nobody who would write there.
func (k *keeper) end(early bool) {
	closeAll(k.verdict, k.life)
	if early {
		k.abort()
	}
	// The keeper ends when CRIU has. If it was killed itself, CRIU may still be at work: in
	// its group, whose number is not another's before we have waited for the keeper.
	if !k.ended() {
		k.abort()
	}
	// CRIU tries some things in a child that stands still, and leaves it so if it is killed then.
	k.others(killTime, func(_, pidfd int) { _ = unix.PidfdSendSignal(pidfd, syscall.SIGKILL, nil, 0) })
	_ = k.cmd.Wait()
	closeAll(k.status, k.held)
	k.box.remove()
}

// abort has CRIU end early. CRIU works inside the processes, with registers that it has to put
// back: to kill it then can be their end. So at first nothing that it writes may be longer than
// nothing, RLIMIT_FSIZE of getrlimit(2), which makes it give up and put all back. It is
// killed if that takes too long.
func (k *keeper) abort() {
	none := &unix.Rlimit{}
	k.others(k.patience, func(pid, _ int) { _ = unix.Prlimit(pid, unix.RLIMIT_FSIZE, none, nil) })
	k.others(killTime, func(_, pidfd int) { _ = unix.PidfdSendSignal(pidfd, syscall.SIGKILL, nil, 0) })
}

// ended waits for the end of the keeper, without reaping it, and says whether it was one by
// itself.
func (k *keeper) ended() bool {
	var info unix.Siginfo
	for {
		switch err := unix.Waitid(unix.P_PID, k.cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err {
		case unix.EINTR:
		case nil:
			return info.Code == cldExited
		default:
			return false
		}
	}
}

// cldExited is CLD_EXITED of waitid(2).
const cldExited = 1

const (
	// giveUpTime is how long CRIU may take to give up, usually.
	giveUpTime = 10 * time.Second
	// killTime is how long CRIU may take to end that was killed: it may be in the kernel,
	// waiting for a disk.
	killTime = 10 * time.Second
	// abortInterval is the pause between two tries.
	abortInterval = time.Millisecond
)

// others does something to all of the keeper's group but the keeper, who is to see their end, over and
// over until that has ended and they have, or time is up.
func (k *keeper) others(most time.Duration, do func(pid, pidfd int)) {
	keeper := k.cmd.Process.Pid
	for until := time.Now().Add(most); time.Now().Before(until); time.Sleep(abortInterval) {
		all, err := readTable()
		if err != nil {
			return
		}
		left := all[keeper].lives()
		for pid, p := range all {
			if p.group == keeper && pid != keeper && p.lives() {
				left = true
				k.other(pid, do)
			}
		}
		if !left {
			return
		}
	}
}

func (k *keeper) other(pid int, do func(pid, pidfd int)) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if p, err := readProcess(pid); err == nil && p.group == k.cmd.Process.Pid { // still that one
		do(pid, fd)
	}
}
