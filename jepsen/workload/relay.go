package workload

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// RelayCommand is the command of the program itself that runs Relay.
const RelayCommand = "relay"

// connected is what a relay says when it is: before, nothing can have reached a node.
const connected = '+'

// Relay connects its input and output with a UNIX socket, until either ends. It is the
// process that asks a node: what that freezes for it spares whoever asks, with all that
// it has started, and the harness has started everything.
func Relay(args []string, in io.Reader, out io.Writer) error {
	if len(args) != 1 {
		return fmt.Errorf("a relay needs a socket, not %q", args)
	}
	conn, err := net.Dial("unix", args[0])
	if err != nil {
		return err
	}
	if _, err := out.Write([]byte{connected}); err != nil {
		return err
	}
	ended := make(chan struct{}, 2)
	go func() {
		_, _ = io.Copy(conn, in) // what fails has ended
		ended <- struct{}{}
	}()
	go func() {
		_, _ = io.Copy(out, conn)
		ended <- struct{}{}
	}()
	<-ended
	return nil
}

// relayConn is a connection by a process of its own, which is killed with it.
type relayConn struct {
	net.Conn
	end func()
}

func (c *relayConn) Close() error {
	c.end()
	return c.Conn.Close()
}

func dialRelay(socket string) (net.Conn, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start a relay: %w", err)
	}
	ours, its := os.NewFile(uintptr(pair[0]), "relay"), os.NewFile(uintptr(pair[1]), "relay")
	defer ours.Close()
	defer its.Close()
	cmd := exec.Command("/proc/self/exe", RelayCommand, socket)
	cmd.Stdin, cmd.Stdout = its, its
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a relay: %w", err)
	}
	end := sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed, or had ended
	})
	conn, err := net.FileConn(ours)
	if err != nil {
		end()
		return nil, fmt.Errorf("start a relay: %w", err)
	}
	c := &relayConn{conn, end}
	var said [1]byte
	err = conn.SetReadDeadline(time.Now().Add(connectTimeout))
	if err == nil {
		_, err = conn.Read(said[:])
	}
	if err == nil {
		err = conn.SetReadDeadline(time.Time{})
	}
	if err != nil || said[0] != connected {
		_ = c.Close()
		return nil, fmt.Errorf("%w: no connection: %w", errNotTaken, err)
	}
	return c, nil
}
