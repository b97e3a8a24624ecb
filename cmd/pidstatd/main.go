// Command pidstatd tells other hosts which processes of this one exist.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/lockerd/lockerd/client"
	"github.com/lockerd/lockerd/getopt"
	"github.com/lockerd/lockerd/pidprobe"
)

// version is set by the build.
var version = "2.0"

// Exit codes, sysexits(3) where it has one; EX_INUSE is the errno.
const (
	exitOK       = 0
	exitUsage    = 64
	exitServe    = 69
	exitInternal = 70
	exitInUse    = int(syscall.EADDRINUSE)
)

type options struct {
	help, version, debug, nofork, fork bool

	host, port       string
	rate, sourceRate int
}

func flags(o *options) *pflag.FlagSet {
	fs := pflag.NewFlagSet("pidstatd", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.StringVar(&o.port, "port", "", "`port` to serve on, UDP: a number or the name of a service (default the service pidstatd, else 1752)")
	fs.StringVar(&o.host, "host", "", "`address` to serve on (default all of this host, IPv4 and IPv6)")
	fs.BoolVar(&o.nofork, "nofork", false, "stay in the foreground, for systemd and for a look")
	fs.BoolVar(&o.debug, "debug", false, "stay in the foreground, and count what is asked, once a second")
	fs.IntVar(&o.sourceRate, "source-rate", pidprobe.DefaultSourceRate, "answer one address at most so many `times` a second; -1 is any")
	fs.IntVar(&o.rate, "rate", pidprobe.DefaultRate, "answer at most so many `times` a second in all; -1 is any")
	fs.BoolVar(&o.version, "version", false, "print the version")
	fs.BoolVar(&o.help, "help", false, "print this text")
	fs.BoolVar(&o.fork, "fork", false, "the contrary of --nofork")
	_ = fs.MarkHidden("fork")
	for _, name := range []string{"host", "rate", "source-rate"} {
		_ = fs.SetAnnotation(name, getopt.New, []string{})
	}
	return fs
}

const helpHead = `pidstatd - tell other hosts which processes of this one exist

Usage: pidstatd [OPTION]...

Goes into the background and answers over UDP, to pidstat, pidwatch, lockerd and
to programs with IPC::PidStat. Whoever can send it a datagram may ask. It needs no
privileges. Lost datagrams are asked for again by whoever wants to know. On a host
with a lockerd that serves other hosts it is not needed: that answers as well.

Options:
`

const helpTail = `
SIGTERM and SIGINT end it, in the foreground SIGHUP too. In the background it
logs to syslog. Options may be shortened, and may start with one dash.

Exit status:
   0  it serves in the background; or in the foreground, a signal ended it
  64  wrong option
  69  it cannot serve on that address
  70  internal error
  98  the port is in use

Examples:
  pidstatd                              serve in the background
  pidstatd --nofork                     the same in the foreground
  pidstatd --host 10.0.0.7 --port 7777  on one address, and another port
`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	var o options
	fs := flags(&o)
	words, err := getopt.Parse(fs, args, true)
	switch {
	case err != nil:
		return misuse(stderr, "%v", err)
	case o.help:
		fmt.Fprint(stdout, helpHead, fs.FlagUsagesWrapped(80), helpTail)
		return exitOK
	case o.version:
		fmt.Fprintf(stdout, "Version: %s\n", version)
		return exitOK
	case len(words) > 0:
		return misuse(stderr, "%q is no option", words[0])
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	if parent, ok := detached(); ok {
		return o.serveDetached(ctx, parent)
	}
	port, err := pidprobe.Port(ctx, o.port)
	if err != nil {
		return misuse(stderr, "--port: %v", err)
	}
	conn, err := pidprobe.Listen(ctx, o.host, port)
	if err != nil {
		return complain(stderr, err)
	}
	defer conn.Close()
	if o.nofork || o.debug {
		return o.serve(ctx, conn, log.New(stderr, "pidstatd: ", 0), func() {})
	}
	if err := detach(conn, args); err != nil {
		return complain(stderr, fmt.Errorf("go into the background: %w", err))
	}
	return exitOK
}

// serve answers until the context ends. It calls ready when it has begun.
func (o *options) serve(ctx context.Context, conn *net.UDPConn, log *log.Logger, ready func()) int {
	s, err := pidprobe.NewServer(conn, pidprobe.ServerConfig{Name: client.FQDN(), Rate: o.rate, SourceRate: o.sourceRate})
	if err != nil {
		log.Print(err)
		return exitInternal
	}
	// What was asked before is in the socket.
	log.Printf("serving on %v", s.Addr())
	ready()
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		o.tell(ctx, s, log)
	}()
	err = s.Serve(ctx)
	cancel()
	<-done
	if err != nil {
		log.Print(err)
		return exitInternal
	}
	log.Printf("stopped")
	return exitOK
}

// tell logs what the server does: with --debug everything, once a second, else
// only that it refuses, once a minute.
func (o *options) tell(ctx context.Context, s *pidprobe.Server, log *log.Logger) {
	every := time.Minute
	if o.debug {
		every = time.Second
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	var last pidprobe.Stats
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now := s.Stats()
		switch {
		case o.debug && now != last:
			log.Printf("%d datagrams, %d answered, %d no questions, %d over the rate, %d ends told",
				now.Asked, now.Answered, now.Refused, now.Limited, now.Pushed)
		case !o.debug && now.Limited != last.Limited:
			log.Printf("%d questions over the rate were not answered within %v", now.Limited-last.Limited, every)
		}
		last = now
	}
}

func misuse(w io.Writer, format string, args ...any) int {
	fmt.Fprintf(w, "%%Error: "+format+", see pidstatd --help\n", args...)
	return exitUsage
}

// complain prints one line about what kept it from serving.
func complain(w io.Writer, err error) int {
	line := strings.ReplaceAll(err.Error(), "\n", "; ")
	if errors.Is(err, syscall.EADDRINUSE) {
		fmt.Fprintf(w, "pidstatd: %s (a pidstatd or a lockerd answers there already; lockerd leaves the port with --pidstat-port 0)\n", line)
		return exitInUse
	}
	fmt.Fprintf(w, "pidstatd: %s\n", line)
	return exitServe
}
