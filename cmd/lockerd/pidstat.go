package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/hashicorp/go-hclog"

	"github.com/lockerd/lockerd/client"
	"github.com/lockerd/lockerd/pidprobe"
)

// listenPidstat opens the port on which the node says which processes of its host
// live, as pidstatd does; nil if there is none. Without the option, a port that is
// not to be had is no reason for a node not to run: most likely a pidstatd is there.
func (o *options) listenPidstat(ctx context.Context, log hclog.Logger) (*net.UDPConn, error) {
	if o.pidstat == "0" || o.pidstat == off {
		return nil, nil
	}
	port, err := pidprobe.Port(ctx, o.pidstat)
	if err != nil {
		return nil, usagef("%s: %w, or 0 for none", o.set["pidstat-port"], err)
	}
	conn, err := pidprobe.Listen(ctx, o.host, port)
	given := o.set["pidstat-port"]
	switch {
	case err == nil:
		return conn, nil
	case given == "" && errors.Is(err, syscall.EADDRINUSE):
		log.Warn("this node leaves pidstat's questions to who has the port: if that is a pidstatd, all is well, and --pidstat-port 0 says so", "error", err)
		return nil, nil
	case given == "":
		log.Warn("this node does not answer pidstat's questions: give another --pidstat-port, or 0 for none", "error", err)
		return nil, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%w (does a pidstatd or another lockerd run here? one is enough: leave %s out, or give another port)", err, given)
	}
	return nil, fmt.Errorf("%w (from %s; 0 is for none)", err, given)
}

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
		s, err := pidprobe.NewServer(conn, pidprobe.ServerConfig{Name: client.FQDN()})
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
