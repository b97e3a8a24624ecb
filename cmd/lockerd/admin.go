package main

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/cluster"
)

// adminPort is the admin socket. It knows which processes are connected to it: those
// must go on while they have others stand still.
type adminPort struct {
	net.Listener
	mu    sync.Mutex
	peers map[net.Conn]int // their processes
}

// listenAdmin opens the admin socket; nil if there is none. Without the option, a
// socket that is not to be had is no reason for a node not to run.
func (o *options) listenAdmin(log hclog.Logger) (*adminPort, error) {
	if o.admin == off {
		return nil, nil
	}
	given := o.set["admin"]
	var err error
	if given == "" {
		err = os.MkdirAll(filepath.Dir(o.admin), 0o755)
	}
	var ln net.Listener
	if err == nil {
		ln, err = cluster.ListenAdmin(o.admin)
	}
	switch {
	case err == nil:
		return &adminPort{Listener: ln, peers: map[net.Conn]int{}}, nil
	case given == "":
		log.Warn("this node has no admin socket, so nobody can order a freeze by it: give another one with --admin, or off", "error", err)
		return nil, nil
	case errors.Is(err, syscall.EINVAL):
		return nil, fmt.Errorf("%w (a socket's path has at most 107 bytes)", err)
	}
	return nil, fmt.Errorf("%w (from %s; off is for none)", err, given)
}

// note is for http.Server.ConnState.
func (a *adminPort) note(c net.Conn, state http.ConnState) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch state {
	case http.StateNew:
		a.peers[c] = peerProcess(u)
	case http.StateClosed, http.StateHijacked:
		delete(a.peers, c)
	}
}

// spared are the processes that are connected, and what they have started: lockctl and
// its command.
func (a *adminPort) spared() []int {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	all := slices.Collect(maps.Values(a.peers))
	a.mu.Unlock()
	return descendants(all, children("/proc"))
}

// descendants adds to processes those that descend from them.
func descendants(pids []int, children map[int][]int) []int {
	seen := map[int]bool{0: true} // who is in another pid namespace
	var all []int
	for len(pids) > 0 {
		pid := pids[0]
		if pids = pids[1:]; !seen[pid] {
			seen[pid] = true
			all = append(all, pid)
			pids = append(pids, children[pid]...)
		}
	}
	return all
}

// children reads from proc(5) which processes have been started by which.
func children(proc string) map[int][]int {
	of := map[int][]int{}
	stats, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "stat")) // the pattern is sound
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// PID (NAME) STATE PARENT ..., where the name may have anything in it.
		_, rest, _ := strings.Cut(string(b[max(0, strings.LastIndexByte(string(b), ')')):]), " ")
		words := strings.Fields(rest)
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil || len(words) < 2 {
			continue
		}
		if parent, err := strconv.Atoi(words[1]); err == nil {
			of[parent] = append(of[parent], pid)
		}
	}
	return of
}

// peerProcess is who has connected, 0 if that is not known: SO_PEERCRED of unix(7).
func peerProcess(c *net.UnixConn) (pid int) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}
