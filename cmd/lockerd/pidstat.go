package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"

	"github.com/hashicorp/go-hclog"

	"github.com/lockerd/lockerd/client"
	"github.com/lockerd/lockerd/pidprobe"
)

// pidstatPort is the port of pidstat in this farm, 0 for a node that neither answers
// nor asks on any. Without a number it is what pidstatd would take.
func (o *options) pidstatPort(ctx context.Context) (uint16, error) {
	if o.pidstat == "0" || o.pidstat == off {
		return 0, nil
	}
	port, err := pidprobe.Port(ctx, o.pidstat)
	if err != nil {
		return 0, usagef("%s: %w, or 0 for none", o.set["pidstat-port"], err)
	}
	return port, nil
}

// hostNamespace is the end of pidprobe.Here for the pid namespace of a host, whose
// inode number is PROC_PID_INIT_INO everywhere (include/linux/proc_ns.h).
const hostNamespace = "/4026531836"

// listenPidstat opens the port on which the node says which processes of its host
// live, as pidstatd does; nil if there is none. Without the option, a port that is
// not to be had is no reason for a node not to run: most likely a pidstatd is there.
//
// A container may have the host's address and other process numbers. Whoever asked
// that address for one of the host would be told that it is dead.
func (o *options) listenPidstat(ctx context.Context, port uint16, here string, log hclog.Logger) (*net.UDPConn, error) {
	given := o.set["pidstat-port"]
	if given == "" && !strings.HasSuffix(here, hostNamespace) {
		log.Warn("this node does not answer pidstat's questions: process numbers here are not known to be the host's; if they are those of its address, say so with --pidstat-port")
		return nil, nil
	}
	conn, err := pidprobe.Listen(ctx, o.host, port)
	switch {
	case err == nil:
		return conn, nil
	case given == "" && errors.Is(err, syscall.EADDRINUSE):
		log.Warn("this node leaves pidstat's questions to who has the port: if that is a pidstatd, all is well", "error", err)
		return nil, nil
	case given == "":
		log.Warn("this node does not answer pidstat's questions: give another --pidstat-port, or 0 for none", "error", err)
		return nil, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%w (does a pidstatd or another lockerd run here? one is enough: leave %s out, or give another port)", err, given)
	}
	return nil, fmt.Errorf("%w (from %s; 0 is for none)", err, given)
}

// pidstatRate is how many questions a node answers a second, a quarter of what one
// processor can. Half may be one host's. The rest of the time is for locks; who gets
// no answer asks again.
const pidstatRate = 100_000

// servePidstat answers on conn, which may be nil, until it is stopped. Locks do not
// depend on it: without it the node goes on.
func servePidstat(conn *net.UDPConn, log hclog.Logger) (stop func()) {
	if conn == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s, err := pidprobe.NewServer(conn, pidprobe.ServerConfig{Name: client.FQDN(), Rate: pidstatRate, SourceRate: pidstatRate / 2})
		if err == nil {
			err = s.Serve(ctx)
		}
		if err != nil {
			log.Error("pidstat's questions are not answered until the node is restarted", "error", err)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}
