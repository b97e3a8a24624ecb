// Command lockerd runs one node of a lock cluster.
//
// It reads its options, opens its ports, hands them to package cluster, and stops
// the node in good order on a signal. What a node does is not decided here.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/net/netutil"

	"github.com/lockerd/lockerd/client"
	"github.com/lockerd/lockerd/cluster"
	"github.com/lockerd/lockerd/freezer"
	"github.com/lockerd/lockerd/freezer/checkpoint"
	"github.com/lockerd/lockerd/freezer/checkpoint/executor"
	"github.com/lockerd/lockerd/pidprobe"
)

// version is set by the linker in releases.
var version = "2.0"

// Exit codes, sysexits(3) where it has one. EX_INUSE is the errno that
// IPC::Locker's lockerd exits with.
const (
	exitOK       = 0
	exitUsage    = 64
	exitServe    = 69
	exitInternal = 70
	exitDisk     = 74
	exitRemoved  = 78
	exitInUse    = int(syscall.EADDRINUSE)
)

// maxWeb bounds connections to the HTTP port: they share descriptors with clients.
const maxWeb = 512

func main() {
	freezer.AtGuard()
	checkpoint.AtStage()
	executor.AtParent()
	// A log that nobody reads any more must not end the node.
	signal.Ignore(syscall.SIGPIPE)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	os.Exit(run(os.Args[1:], os.Getenv, signals, os.Stdout, os.Stderr))
}

// run is the program. It returns its exit code.
func run(args []string, getenv func(string) string, signals <-chan os.Signal, stdout, stderr io.Writer) int {
	o, fs, err := parse(args, getenv)
	switch {
	case err != nil:
		return complain(stderr, err)
	case o.help:
		fmt.Fprint(stdout, help(fs))
		return exitOK
	case o.version:
		fmt.Fprintf(stdout, "Version: %s\n", version)
		return exitOK
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := o.validate(ctx); err != nil {
		return complain(stderr, err)
	}
	level := hclog.Info
	if o.debug {
		level = hclog.Debug
	}
	log := hclog.New(&hclog.LoggerOptions{Name: "lockerd", Level: level, Output: stderr})

	ports, err := o.listen(ctx, log)
	if err != nil {
		return complain(stderr, err)
	}
	defer ports.close()
	cfg := o.cluster(ports, log)
	if cfg.Executor, err = o.openExecutor(ports.admin, log); err != nil {
		return complain(stderr, err)
	}
	node, err := cluster.Open(ctx, cfg)
	if err != nil {
		if cfg.Executor != nil {
			_ = cfg.Executor.Close() // it holds nothing
		}
		return complain(stderr, err)
	}
	return o.serve(ports, node, cfg.Executor, signals, getenv("NOTIFY_SOCKET"), log)
}

// cluster is the node's configuration.
func (o *options) cluster(ports listeners, log hclog.Logger) cluster.Config {
	cfg := cluster.Config{
		Name:            o.name,
		Version:         version,
		DataDir:         o.dataDir,
		Agent:           o.agent,
		BootstrapExpect: o.expect,
		Join:            o.join,
		Advertise:       o.advertise,
		PeerListener:    ports.peer,
		Clients:         []net.Listener{ports.client},
		Logger:          log,
		Host:            client.FQDN(),
		PidstatPort:     int(ports.pidstatPort),
		Processes: func(dead func(pidprobe.Process), warn func(error)) (cluster.Processes, error) {
			return pidprobe.NewWatcher(dead, warn)
		},
	}
	if ports.pidstatPort == 0 {
		cfg.PidstatPort = -1 // for Config, 0 is the usual one
	}
	if o.gossip != off {
		cfg.Gossip = o.gossip
	}
	return cfg
}

// serve runs the node's HTTP port beside it until a signal comes or the node
// ends by itself, and stops both.
func (o *options) serve(ports listeners, node *cluster.Node, executes cluster.Executor, signals <-chan os.Signal, socket string, log hclog.Logger) int {
	web := cluster.NewHTTPServer(node, log.Named("http"), o.webNames()...)
	defer servePidstat(ports.pidstat, log)()
	failed := make(chan error, 2)
	serve := func(ln net.Listener) {
		if err := web.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			failed <- err
		}
	}
	if ports.admin != nil {
		web.ConnState = ports.admin.note
		go serve(ports.admin.Listener)
	}
	if ports.http != nil {
		go serve(netutil.LimitListener(ports.http, maxWeb))
	}
	log.Info("serving", "name", o.name, "version", version, "clients", address(ports.client),
		"http", address(ports.http), "peers", address(ports.peer), "pidstat", packetAddress(ports.pidstat),
		"admin", ports.adminAddress(), "data", o.dataDir)
	if len(o.executors) > 0 {
		log.Info("orders of the cluster are carried out here", "executors", strings.Join(o.executors, ","), "hooks", o.hooks)
	}
	tell(log, socket, "READY=1\n")

	code := await(node, signals, failed, log)
	tell(log, socket, "STOPPING=1\n")
	halt := stopping{limit: stopTime, signals: signals, log: log, extend: func() { tell(log, socket, extendStop) }}
	if x, ok := executes.(executors); ok {
		halt.closing = x.closing
	}
	if err := halt.stop(node.Close, web.Close); err != nil {
		log.Error("the node did not stop in good order", "error", err)
		code = max(code, exitInternal)
	}
	if code == exitOK {
		log.Info("stopped")
	}
	return code
}

// webNames are the names by which this node's page may be called up.
func (o *options) webNames() []string {
	names := []string{o.name}
	for _, a := range []string{o.advertise, o.http} {
		if h, _, err := net.SplitHostPort(a); err == nil {
			a = h
		}
		names = append(names, a)
	}
	return names
}

// await returns when the node is to stop, or cannot go on, with the exit code.
func await(node *cluster.Node, signals <-chan os.Signal, failed <-chan error, log hclog.Logger) int {
	for {
		select {
		case s := <-signals:
			if s == syscall.SIGHUP {
				log.Info("SIGHUP ignored: there is nothing to read again; restart the node to change its options")
				continue
			}
			log.Info("stopping", "signal", s.String())
			return exitOK
		case err := <-failed:
			log.Error("the HTTP port or the admin socket failed", "error", err)
			return exitServe
		case <-node.Done():
			// The node has logged why.
			if diskFailed(node.Err()) {
				return exitDisk
			}
			switch {
			case errors.Is(node.Err(), cluster.ErrJoin):
				return exitServe
			case errors.Is(node.Err(), cluster.ErrRemoved):
				return exitRemoved
			}
			return exitInternal
		}
	}
}

// complain prints one line about a node that could not start, and says with what
// code to exit.
func complain(w io.Writer, err error) int {
	line := strings.ReplaceAll(err.Error(), "\n", "; ")
	fmt.Fprintf(w, "lockerd: %s\n", line)
	var usage usageError
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, syscall.EADDRINUSE):
		return exitInUse
	case diskFailed(err):
		return exitDisk
	case errors.Is(err, cluster.ErrRemoved):
		return exitRemoved
	}
	return exitServe
}

// diskFailed says whether err is an error of the disk.
func diskFailed(err error) bool {
	return errors.Is(err, cluster.ErrDisk) || errors.Is(err, syscall.EIO) || errors.Is(err, syscall.ENOSPC) ||
		errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.EDQUOT)
}

func tell(log hclog.Logger, socket, state string) {
	if err := notify(socket, state); err != nil {
		log.Warn("systemd was not told", "error", err)
	}
}

func packetAddress(conn *net.UDPConn) string {
	if conn == nil {
		return off
	}
	return conn.LocalAddr().String()
}

func address(ln net.Listener) string {
	if ln == nil {
		return off
	}
	return ln.Addr().String()
}
