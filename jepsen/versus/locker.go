package versus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/jepsen/proc"
)

// nodes is the size of every cluster.
const nodes = 3

// address of a node: all of them are on loopback, at their default ports.
func address(i int) string { return fmt.Sprintf("127.0.0.%d", i%nodes+1) }

const (
	startTime = 30 * time.Second // for a cluster to become ready
	pollEvery = 5 * time.Millisecond
	askTime   = 5 * time.Second
	largest   = 1 << 20 // of an answer, in bytes
)

// Programs are the paths of what is tested. No Etcd or no Etcdctl means that they
// are not installed.
type Programs struct {
	Self     string // a program that has IncrementCommand, HoldCommand and StampCommand
	Lockerd  string
	Lockersh string
	Etcd     string
	Etcdctl  string
	Dir      string // for all data, on the disk that is to be used
}

// locker is a way to run a command under a lock.
type locker struct {
	title   string
	about   string                                                    // what was used, in words
	servers []*proc.Proc                                              // not started yet
	ready   []string                                                  // URLs that answer 200 when a server can serve
	command func(from int, lock string, command ...string) invocation // from: the server that is asked first
	waiters func(ctx context.Context, lock string) (int, error)
}

type invocation struct {
	args []string // with the program
	env  []string
}

// unlocked runs commands without any lock, as a control.
func unlocked() *locker {
	return &locker{
		title:   "no lock",
		about:   "the commands alone, to show that the test can fail",
		command: func(_ int, _ string, command ...string) invocation { return invocation{args: command} },
	}
}

// ourTitle is the title of lockersh with its default options, which is what is judged.
const ourTitle = "lockersh"

// leased is lockersh with a lease, for those who would rather go on than wait for a host
// that does not answer.
func leased(p Programs, dir string, lease time.Duration) *locker {
	l := lockersh(p, dir, "--lease", lease.String())
	l.title += " --lease " + lease.String()
	l.about = fmt.Sprintf("the same with a lease of %v, which lockersh renews; when it ends the lock goes on, and lockersh kills its command as soon as it can", lease)
	return l
}

// lockersh is the product.
func lockersh(p Programs, dir string, options ...string) *locker {
	l := &locker{title: ourTitle, about: fmt.Sprintf("%s: %d servers with default options; lockersh with default options, so that the lock lasts as long as the command's process, and has no lease", version(p.Lockerd, "--version"), nodes)}
	var join []string
	for i := range nodes {
		join = append(join, address(i)+":1754")
	}
	for i := range nodes {
		a, name := address(i), fmt.Sprintf("n%d", i+1)
		l.servers = append(l.servers, &proc.Proc{
			Name: "lockerd " + name, Path: p.Lockerd, Log: filepath.Join(dir, name+".log"),
			Args: []string{
				"--name", name, "--data-dir", filepath.Join(dir, name), "--host", a, "--peer", a + ":1753", "--gossip", a + ":1754",
				"--http", a + ":1755", "--admin", "off", "--bootstrap-expect", fmt.Sprint(nodes), "--join", strings.Join(join, ","),
			},
		})
		l.ready = append(l.ready, "http://"+a+":1755/readyz")
	}
	l.command = func(from int, lock string, command ...string) invocation {
		return invocation{
			args: slices.Concat([]string{p.Lockersh, "--lock", lock}, options, []string{"--"}, command),
			env:  []string{"IPCLOCKER_HOST=" + strings.Join(rotated(from), ":")},
		}
	}
	l.waiters = func(ctx context.Context, lock string) (int, error) {
		b, err := ask(ctx, "GET", "http://"+address(0)+":1755/v1/locks", "")
		if err != nil {
			return 0, err
		}
		return lockerdWaiters(b, lock)
	}
	return l
}

func lockerdWaiters(answer []byte, lock string) (int, error) {
	var table struct {
		Waiters []struct {
			Locks []string `json:"locks"`
		} `json:"waiters"`
	}
	if err := json.Unmarshal(answer, &table); err != nil {
		return 0, fmt.Errorf("read the table of locks: %w", err)
	}
	n := 0
	for _, w := range table.Waiters {
		if slices.Contains(w.Locks, lock) {
			n++
		}
	}
	return n, nil
}

// rotated are all addresses, beginning with one of them.
func rotated(from int) []string {
	var all []string
	for i := range nodes {
		all = append(all, address(from+i))
	}
	return all
}

// start runs the servers and waits until all can serve.
func (l *locker) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for _, s := range l.servers {
		if err := s.Start(func(start func() error) error { return start() }); err != nil {
			return err
		}
	}
	for i, url := range l.ready {
		for {
			_, err := ask(ctx, "GET", url, "")
			if err == nil {
				break
			}
			if s := l.servers[i]; !s.Running() {
				return fmt.Errorf("%s has ended: %s: %s", s.Name, s.Exit(), lastLine(s.Log))
			}
			if !pause(ctx, pollEvery) {
				return fmt.Errorf("wait for %s to be ready: %w: %w", l.servers[i].Name, context.Cause(ctx), err)
			}
		}
	}
	return nil
}

func lastLine(path string) string {
	b, _ := os.ReadFile(path) // it is only to help
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

func (l *locker) stop() {
	for _, s := range l.servers {
		s.Kill()
	}
}

// pause waits, and says whether ctx still goes on.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// ask returns the body of a 200.
func ask(ctx context.Context, method, url, body string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, largest))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, resp.Status)
	}
	return b, err
}

// version is a program with the last word of the first line that it says of itself.
func version(path string, args ...string) string {
	b, err := exec.Command(path, args...).Output()
	line, _, _ := strings.Cut(string(b), "\n")
	words := strings.Fields(line)
	if err != nil || len(words) == 0 {
		return filepath.Base(path) + " of unknown version"
	}
	return filepath.Base(path) + " " + words[len(words)-1]
}

// client is a lock client with its command.
type client struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when the client has been reaped
}

// run starts a lock client with a command; what they print goes to a file.
func (l *locker) run(dir string, from int, lock string, command ...string) (*client, error) {
	inv := l.command(from, lock, command...)
	log, err := os.OpenFile(filepath.Join(dir, "clients.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(inv.args[0], inv.args[1:]...)
	cmd.Env = append(os.Environ(), inv.env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", l.title, err)
	}
	c := &client{cmd: cmd, ended: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ended is in ProcessState
		close(c.ended)
	}()
	return c, nil
}

func (c *client) pid() int { return c.cmd.Process.Pid }

func (c *client) over() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}

// end waits for the client's own end, and kills it with all its children if that
// takes too long.
func (c *client) end(ctx context.Context, limit time.Duration) error {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-c.ended:
		return nil
	case <-t.C:
	case <-ctx.Done():
	}
	if c.over() {
		return nil
	}
	all := family(c.pid())
	kill(all...)
	<-c.ended
	bury(all[1:])
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%s did not end within %v of its command", filepath.Base(c.cmd.Path), limit)
}

// Prepare makes the namespaces that this process is in fit for clusters: loopback is
// up, and no variable of the environment changes a program's options.
func Prepare() error {
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		if slices.ContainsFunc([]string{"ETCD", "LOCKERD_", "IPCLOCKER_", "LOCKER_", "GOMAXPROCS", "GOGC"}, func(p string) bool { return strings.HasPrefix(name, p) }) {
			if err := os.Unsetenv(name); err != nil {
				return err
			}
		}
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("set up loopback: %w", err)
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("set up loopback: %w", err)
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("set up loopback: %w", err)
	}
	return nil
}

// place makes a directory for what one cluster and its clients leave.
func (p Programs) place(name string) (string, error) {
	dir := filepath.Join(p.Dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return dir, nil
}

// machine says in words what the servers, the clients and the test share.
func machine(dir string) string {
	disk := "on a disk that could not be looked at"
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err == nil {
		disk = "and one disk"
		if fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC {
			disk = "and memory in place of a disk, so that forcing data to it costs nothing: give a --dir"
		}
	}
	return fmt.Sprintf("servers and clients share %d processors %s", runtime.NumCPU(), disk)
}
