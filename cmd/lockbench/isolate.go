package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/lockerd/lockerd/systest/farm"
)

// insideEnv tells a second lockbench that it has a network of its own.
const insideEnv = "LOCKBENCH_ISOLATED"

func isolated() bool { return os.Getenv(insideEnv) != "" }

// insideError is the end of the second lockbench.
type insideError struct{ code int }

func (e insideError) Error() string { return fmt.Sprintf("exit status %d", e.code) }

// isolate runs this command line again in an empty network namespace, which the
// kernel removes when the last process in it has ended. A thread cannot take the
// others of its process along into another namespace, hence a process.
func isolate(ctx context.Context, p *program) error {
	c := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	c.Args[0] = os.Args[0]
	c.Env = append(os.Environ(), insideEnv+"=1")
	c.Stdout, c.Stderr = p.out, p.err
	// A terminal's Ctrl-C comes to us alone, and from us to it.
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM, Setpgid: true}
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = 20 * time.Second
	err := c.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return insideError{farm.ExitCode(exit.ProcessState)}
	case errors.Is(err, syscall.EPERM):
		return failed(errors.New("--cut makes network namespaces, which only root may: run it as root"))
	case err != nil:
		return failed(fmt.Errorf("run in a network of its own: %w", err))
	}
	return nil
}
