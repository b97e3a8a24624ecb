package pidprobe

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"
)

// Await returns nil when a process of this host has ended, which it is told by the
// kernel. Otherwise it returns [ErrPID], the context's error, or why it cannot
// wait. For many processes take a [Watcher].
func Await(ctx context.Context, p Process) error {
	dead := make(chan struct{})
	w, err := NewWatcher(func(Process) { close(dead) }, nil)
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Watch(p); err != nil {
		return err
	}
	select {
	case <-dead:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// AwaitDeath returns nil when a process has ended. For one of another host it asks
// that host's server once a second, and is told at once if the server can; it does
// not return while there is no answer: whoever is out of reach may live. Errors are
// [ErrPID], [ErrNoHost], the context's, or why it cannot wait.
func (c *Client) AwaitDeath(ctx context.Context, host string, pid int32) error {
	if pid < 1 {
		return ErrPID
	}
	if c.Local(host) {
		p, err := Lookup(pid)
		switch {
		case errors.Is(err, ErrDead):
			return nil
		case err != nil:
			p = Process{PID: pid}
		}
		return Await(ctx, p)
	}
	addrs, err := c.resolve(ctx, host)
	if err != nil {
		return err
	}
	i := inquiry{host: host, pid: pid}
	defer i.close()
	for try := 0; ; {
		next := time.Now().Add(askWait)
		v, again := i.ask(ctx, addrs[try%len(addrs)], next)
		switch {
		case v == Dead:
			return nil
		case again:
			continue
		case v == Unknown:
			// So it is also when a server that promises nothing has one that lives. The
			// next socket has a new route, and what this one was promised is lost.
			i.close()
			try++
		}
		select {
		case <-time.After(time.Until(next)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// inquiry is the watch of one process of another host.
type inquiry struct {
	host  string
	pid   int32
	birth []byte   // of the process, as the last promise had it
	conn  net.Conn // nil at first, and after silence
}

// ask asks, and hears the server until the time is over or there is something to do.
// [Alive] is a promise to tell of the end. If that has been told, it is time to ask
// again.
func (i *inquiry) ask(ctx context.Context, addr netip.AddrPort, until time.Time) (v Verdict, again bool) {
	if i.conn == nil {
		// On a connected socket the kernel drops what comes from elsewhere.
		var d net.Dialer
		conn, err := d.DialContext(ctx, "udp", addr.String())
		if err != nil {
			return Unknown, false
		}
		i.conn = conn
	}
	conn := i.conn
	if conn.SetReadDeadline(until) != nil {
		return Unknown, false
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := conn.Write(appendQuestion(nil, i.pid, i.host, IfDead|tellEnd, i.birth)); err != nil {
		return Unknown, false
	}
	// What is pushed may come before the promise, if the process ends just now. By
	// itself it is nothing to act on: very old servers may say so each time.
	pushed := false
	var buf [maxDatagram]byte
	for {
		n, err := conn.Read(buf[:])
		if err != nil {
			return v, false
		}
		a, ok := parseAnswer(buf[:n])
		switch {
		case !ok || a.pid != i.pid || string(a.host) != i.host:
			continue
		case a.verdict == Dead:
			return Dead, false
		case a.verdict == Unknown:
			pushed = true
		case len(a.birth) > 0:
			i.birth = append(i.birth[:0], a.birth...)
			v = Alive
		}
		if pushed && v == Alive {
			return v, true
		}
	}
}

func (i *inquiry) close() {
	if i.conn != nil {
		i.conn.Close()
		i.conn = nil
	}
}

// Resolve finds a host, so that [Client.Exists] and [Client.AwaitDeath] need not
// within the next half minute. The error is [ErrNoHost] or the context's.
func (c *Client) Resolve(ctx context.Context, host string) error {
	if c.Local(host) {
		return nil
	}
	_, err := c.resolve(ctx, host)
	return err
}
