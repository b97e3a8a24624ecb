package pidprobe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

var (
	// ErrNoAnswer is returned when no pidstatd of the host has answered.
	ErrNoAnswer = errors.New("no answer from pidstatd")
	// ErrNoHost is returned when a host's name has no address.
	ErrNoHost = errors.New("can't find host")
)

const (
	askTries = 5
	// askWait is for one answer, and the time between two questions.
	askWait = time.Second
)

// Client asks pidstatds whether processes of their hosts live. The zero value is
// good. Methods may be called at the same time.
type Client struct {
	// Port of the pidstatds; 0 is DefaultPort.
	Port uint16
	// Names are further names of this host. Processes of these, of localhost and of
	// what the kernel calls this host are looked at directly: no pidstatd is needed.
	Names []string

	mu    sync.Mutex
	known map[string]lookup
}

// lookup is what a host's name meant, and how long that may be taken for granted.
type lookup struct {
	addrs []netip.AddrPort
	until time.Time
}

const (
	lookupTime = 30 * time.Second
	maxLookups = 4096
)

// Local says whether a host is this one by its name. An address is not looked
// at: whoever gives one means the pidstatd there.
func (c *Client) Local(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	own := func(name string) bool { return name != "" && strings.EqualFold(host, name) }
	return own(hostname()) || slices.ContainsFunc(c.Names, own)
}

var hostname = sync.OnceValue(func() string {
	h, _ := os.Hostname()
	return h
})

// Exists says whether a host has a process, by asking up to five times, a second
// each. The error is [ErrPID], [ErrNoHost], [ErrNoAnswer] or the context's.
// Without an error, [Unknown] is the host's own answer.
func (c *Client) Exists(ctx context.Context, host string, pid int32) (Verdict, error) {
	if pid < 1 {
		return Unknown, ErrPID
	}
	if c.Local(host) {
		return Check(Process{PID: pid}), nil
	}
	addrs, err := c.resolve(ctx, host)
	if err != nil {
		return Unknown, err
	}
	reason := error(nil)
	for try := 0; try < askTries && len(addrs) > 0; try++ {
		addr := addrs[try%len(addrs)]
		v, err := c.ask(ctx, addr, host, pid, AllAnswers)
		switch {
		case err == nil:
			return v, nil
		case ctx.Err() != nil:
			return Unknown, ctx.Err()
		case !errors.Is(err, os.ErrDeadlineExceeded):
			// Nobody listens there, or there is no way: that will not change soon.
			reason = err
			addrs = slices.DeleteFunc(addrs, func(a netip.AddrPort) bool { return a == addr })
			try--
		}
	}
	if len(addrs) > 0 || reason == nil {
		reason = fmt.Errorf("asked %d times", askTries)
	}
	return Unknown, fmt.Errorf("%w on %s, port %d: %w", ErrNoAnswer, host, c.port(), reason)
}

func (c *Client) port() uint16 {
	if c.Port == 0 {
		return DefaultPort
	}
	return c.Port
}

// resolve finds the addresses of a host, IPv4 first: IPC::Locker's pidstatd has no
// other. It does not ask the resolver each time.
func (c *Client) resolve(ctx context.Context, host string) ([]netip.AddrPort, error) {
	if host == "" || len(host) > maxHost || strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' }) {
		return nil, fmt.Errorf("%w %q", ErrNoHost, host)
	}
	c.mu.Lock()
	known, ok := c.known[host]
	c.mu.Unlock()
	if ok && time.Now().Before(known.until) {
		return slices.Clone(known.addrs), nil
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%w %s: %w", ErrNoHost, host, err)
	}
	slices.SortStableFunc(ips, func(a, b netip.Addr) int { return a.Unmap().BitLen() - b.Unmap().BitLen() })
	addrs := make([]netip.AddrPort, len(ips))
	for i, ip := range ips {
		addrs[i] = netip.AddrPortFrom(ip.Unmap(), c.port())
	}
	addrs = slices.Compact(addrs)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil || len(c.known) >= maxLookups {
		c.known = make(map[string]lookup)
	}
	c.known[host] = lookup{addrs, time.Now().Add(lookupTime)}
	return slices.Clone(addrs), nil
}

// ask sends one question and waits a second for its answer. The error is
// [os.ErrDeadlineExceeded], the context's, or one of the network.
func (c *Client) ask(ctx context.Context, addr netip.AddrPort, host string, pid int32, want Flags) (Verdict, error) {
	// On a connected socket the kernel drops what comes from elsewhere, and tells
	// when nobody listens there.
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", addr.String())
	if err != nil {
		return Unknown, err
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(askWait)); err != nil {
		return Unknown, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := conn.Write(appendQuestion(nil, pid, host, want, nil)); err != nil {
		return Unknown, err
	}
	var buf [maxDatagram]byte
	for {
		n, err := conn.Read(buf[:])
		if err != nil {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return Unknown, err
		}
		if a, ok := parseAnswer(buf[:n]); ok && a.pid == pid && string(a.host) == host {
			return a.verdict, nil
		}
	}
}
