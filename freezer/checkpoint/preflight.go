package checkpoint

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// probeTime bounds what [CRIU.Preflight] does.
const probeTime = 30 * time.Second

// Preflight checkpoints and restarts a process with a listening TCP socket, and looks
// whether it still listens: `criu check` finds kernels fine on which that fails. The
// error says what did not work.
func (c *CRIU) Preflight(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	if err := needRoot(); err != nil {
		return err
	}
	b, err := newBox(os.TempDir()) // the next one removes it if we are killed
	if err != nil {
		return classed(err, "try CRIU")
	}
	defer b.remove()
	cmd, address, err := startProbe()
	if err != nil {
		return classed(err, "start a process to try CRIU with")
	}
	file := filepath.Join(b.dir, "probe")
	_, err = Checkpoint(ctx, Order{Target: Tree(cmd.Process.Pid), File: file, Signal: syscall.SIGKILL, NoSync: true, CRIU: c})
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err != nil {
		return fmt.Errorf("CRIU %s does not checkpoint: %w", c.Version, err)
	}
	job, err := Restart(ctx, Plan{File: file, CRIU: c})
	if err != nil {
		return fmt.Errorf("CRIU %s does not restart: %w", c.Version, err)
	}
	defer func() {
		_ = job.Signal(syscall.SIGKILL)
		_, werr := job.Wait()
		err = errors.Join(err, werr)
	}()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return fail(Env, syscall.ECONNREFUSED, "CRIU %s does not restart sockets: %w", c.Version, err)
	}
	return conn.Close()
}

// startProbe starts the process, and returns the address that it listens at.
func startProbe() (cmd *exec.Cmd, address string, err error) {
	port, theirs, err := os.Pipe()
	if err != nil {
		return nil, "", err
	}
	defer port.Close()
	cmd = exec.Command("/proc/self/exe")
	cmd.Args = []string{probeName}
	cmd.Dir = "/"
	// Our session may be one that began outside of our pid namespace.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.ExtraFiles = []*os.File{theirs}
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		return nil, "", err
	}
	line, err := bufio.NewReader(port).ReadString('\n')
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, "", fmt.Errorf("it listens at no port: %w", err)
	}
	return cmd, net.JoinHostPort("127.0.0.1", strings.TrimSpace(line)), nil
}
