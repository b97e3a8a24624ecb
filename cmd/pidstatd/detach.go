package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/syslog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
)

// A Go program cannot go on after fork(2) without its other threads. So the one
// in the background is another process of this program, that inherits the socket,
// and the end of a pipe on which it says that it serves.
const (
	detachedEnv = "PIDSTATD_DETACHED"
	socketFD    = 3
	readyFD     = 4
)

// detach starts the background process, and waits until it serves.
func detach(conn *net.UDPConn, args []string) error {
	socket, err := conn.File()
	if err != nil {
		return err
	}
	defer socket.Close()
	ready, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	defer tell.Close()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), detachedEnv+"=1")
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{socket, tell}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// A daemon keeps nobody waiting for the end of a pipe.
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		for _, e := range fds {
			if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
				syscall.CloseOnExec(fd)
			}
		}
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	tell.Close()
	said, err := io.ReadAll(ready)
	if err != nil {
		return err
	}
	if string(said) != "ready" {
		err := cmd.Wait()
		return fmt.Errorf("%s (%v)", strings.TrimSpace(string(said)), err)
	}
	return cmd.Process.Release()
}

// detached says whether this is the background process, and returns its pipe.
func detached() (parent *os.File, ok bool) {
	if os.Getenv(detachedEnv) == "" {
		return nil, false
	}
	os.Unsetenv(detachedEnv)
	syscall.CloseOnExec(readyFD)
	return os.NewFile(readyFD, "pipe to the foreground"), true
}

// serveDetached is the life of the background process.
func (o *options) serveDetached(ctx context.Context, parent *os.File) int {
	signal.Ignore(syscall.SIGHUP)
	conn, err := inherited()
	if err != nil {
		fmt.Fprintln(parent, err)
		parent.Close()
		return exitInternal
	}
	defer conn.Close()
	out := io.Discard
	// A host without syslog is no reason not to serve.
	if w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_NOTICE, "pidstatd"); err == nil {
		defer w.Close()
		out = w
	}
	return o.serve(ctx, conn, log.New(out, "", 0), func() {
		fmt.Fprint(parent, "ready")
		parent.Close()
	})
}

func inherited() (*net.UDPConn, error) {
	f := os.NewFile(socketFD, "socket")
	defer f.Close()
	pc, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("inherit the socket: %w", err)
	}
	conn, ok := pc.(*net.UDPConn)
	if !ok {
		return nil, errors.New("inherit the socket: it is no UDP socket")
	}
	return conn, nil
}
