package executor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/freezer/checkpoint"
	"github.com/lockerd/lockerd/freezer/checkpoint/fencefile"
)

// parentName is what the parent of a restarted job is called instead of the program.
const parentName = "lockerd-job"

// parentSocket is its descriptor.
const parentSocket = 3

// restored is the parent's answer, to what is to be restarted and to the verdict.
type restored struct {
	Failed string
	PID    int    // by which we know the job
	ID     string // of the file that it was restored from
}

// verdict says whether a job that stands still may run, and under which fence.
type verdict struct {
	Run   bool
	Fence uint64 // 0 without a lock
}

// ended is the parent's last word.
type ended struct{ Status uint32 }

// AtParent must be called in main, before anything else but [checkpoint.AtStage]. In the
// parent of a restarted job it does not return.
func AtParent() {
	if len(os.Args) == 1 && os.Args[0] == parentName {
		os.Exit(parentMain())
	}
}

// parentMain is the life of the parent of a restarted job.
func parentMain() int {
	unix.CloseOnExec(parentSocket)
	if unix.SetNonblock(parentSocket, true) != nil {
		return 1
	}
	sock := os.NewFile(parentSocket, "executor")
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	in, out := json.NewDecoder(sock), json.NewEncoder(sock)
	var s RestartSpec
	if in.Decode(&s) != nil {
		return 1
	}
	ctx, cancel := context.WithCancel(context.Background())
	var v verdict
	decided := make(chan error, 1)
	go func() { // no verdict is one too, at any time
		err := in.Decode(&v)
		if err != nil {
			cancel()
		}
		decided <- err
	}()
	job, err := restore(ctx, s)
	if err != nil {
		_ = out.Encode(restored{Failed: err.Error()})
		return 1
	}
	fence, err := placeFenceOf(job)
	if err != nil {
		job.Kill()
		_ = out.Encode(restored{Failed: err.Error()})
		return 1
	}
	_ = out.Encode(restored{PID: job.PID(), ID: job.Manifest.ID})
	if err := <-decided; err != nil || !v.Run {
		job.Kill()
		_, _ = job.Wait()
		return 1
	}
	if v.Fence != 0 && fence != "" {
		err = fencefile.Tell(fence, v.Fence)
	}
	if err = errors.Join(err, job.Continue()); err != nil {
		job.Kill()
		_ = out.Encode(restored{Failed: err.Error()})
		return 1
	}
	_ = out.Encode(restored{}) // if nobody hears it, Recover finds the job running
	go func() {                // as long as we live
		for sig := range signals {
			_ = job.Signal(sig.(syscall.Signal))
		}
	}()
	status, err := job.Wait()
	if err == nil {
		_ = out.Encode(ended{uint32(status)})
	}
	return 0
}

// restore restarts a job, which stands still then.
func restore(ctx context.Context, s RestartSpec) (*checkpoint.Job, error) {
	m, err := inspect(s.File)
	if err != nil {
		return nil, err
	}
	if err := placeFences(m); err != nil {
		return nil, err
	}
	if len(m.Terminals) > 0 {
		if err := makeTerminal(); err != nil {
			return nil, fmt.Errorf("make a terminal for the job: %w", err)
		}
	}
	job, err := checkpoint.Restart(ctx, checkpoint.Plan{
		File: s.File, Relocations: s.Relocations, NewPIDs: s.NewPIDs, Signal: syscall.SIGSTOP, Trusted: s.Trust, Suspended: true,
	})
	if err != nil {
		return nil, err
	}
	if err := job.Mark(checkpoint.OmitMaybe); err != nil {
		job.Kill()
		return nil, err
	}
	return job, nil
}

// makeTerminal makes a pseudo-terminal our controlling one, for a job that was
// checkpointed with a terminal. What it writes there is thrown away.
func makeTerminal() error {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	n := 0
	c, err := master.SyscallConn()
	if err != nil {
		return err
	}
	e := c.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	})
	if err = errors.Join(err, e); err != nil {
		return err
	}
	// We lead a session, so the first terminal that we open is its own.
	tty, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 4096)
		for {
			if _, err := master.Read(buf); err != nil {
				return
			}
		}
	}()
	_ = tty // it stays open for as long as we live
	return nil
}
