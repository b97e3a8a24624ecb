package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/lockerd/lockerd/pidprobe"
)

// Remote asks the pidstatds of other hosts whether processes live. Ask and Receive
// are called by one goroutine, Lookup by others at the same time.
type Remote interface {
	// Lookup finds the addresses of a host. More than one means that the name may
	// stand for several hosts. It fails if there is none, and if the host is this one.
	Lookup(ctx context.Context, host string) ([]netip.Addr, error)
	// Ask sends a question, and does not wait for its answer.
	Ask(ctx context.Context, at netip.Addr, pid int32) error
	// Receive waits for the next death that is the answer to a question asked.
	Receive(ctx context.Context) (at netip.Addr, pid int32, err error)
	Close() error
}

// errThisHost is why a name is not asked about: it leads back here.
var errThisHost = errors.New("the name is one of this host")

// pidstats is a Remote that speaks the pidstat protocol, by one socket.
type pidstats struct {
	client  pidprobe.Client
	stream  *pidprobe.Stream
	watches bool // this host's processes are watched by this node
}

func newPidstats(port uint16, watches bool) (*pidstats, error) {
	p := &pidstats{client: pidprobe.Client{Port: port}, watches: watches}
	var err error
	p.stream, err = p.client.Stream()
	return p, err
}

// Lookup implements Remote.
func (p *pidstats) Lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("learn this host's addresses: %w", err)
	}
	return others(found, own, p.watches)
}

// others checks where a host's name leads.
//
// A name that leads to a loopback address (localhost, or a host's own name in its
// /etc/hosts) says nothing of the host that sent it: it means another one there
// than here, so the pidstatd that would be asked is the wrong one. One that leads
// to another address of this host is this host's. Its processes are watched by this
// node under the names it knows, and others are left alone: their numbers may be
// those of a container that has borrowed the host's address.
func others(found []netip.Addr, own []net.Addr, watches bool) ([]netip.Addr, error) {
	var v4, v6 []netip.Addr
	for _, a := range found {
		a = a.Unmap()
		switch {
		case a.IsLoopback(), a.IsUnspecified(), a.IsMulticast():
			return nil, errThisHost
		case a.Is4():
			v4 = append(v4, a)
		default:
			v6 = append(v6, a)
		}
		for _, o := range own {
			if n, ok := o.(*net.IPNet); ok && watches && n.IP.Equal(a.WithZone("").AsSlice()) {
				return nil, errThisHost
			}
		}
	}
	// IPC::Locker's pidstatd has IPv4 only, where a host has both.
	if len(v4) > 0 {
		return v4, nil
	}
	return v6, nil
}

// Ask implements Remote. The address stands for the host's name too: pidstatd sends
// back what it gets.
func (p *pidstats) Ask(ctx context.Context, at netip.Addr, pid int32) error {
	err := p.stream.Request(ctx, at.String(), pid, pidprobe.IfDead)
	if !errors.Is(err, pidprobe.ErrPending) {
		return err
	}
	// Nobody answers for the living, so these were asked for minutes. With the
	// stream goes all it remembers.
	s, err := p.client.Stream()
	if err != nil {
		return err
	}
	_ = p.stream.Close()
	p.stream = s
	return p.stream.Request(ctx, at.String(), pid, pidprobe.IfDead)
}

// Receive implements Remote.
func (p *pidstats) Receive(ctx context.Context) (netip.Addr, int32, error) {
	for {
		a, err := p.stream.Receive(ctx)
		switch {
		case err != nil && ctx.Err() != nil:
			return netip.Addr{}, 0, ctx.Err()
		case err != nil:
			return netip.Addr{}, 0, err
		case a.Verdict != pidprobe.Dead:
			continue // old servers answer for the living too
		}
		at, err := netip.ParseAddr(a.Host)
		if err != nil {
			continue // not one that Ask has sent
		}
		return at, a.PID, nil
	}
}

// Close implements Remote.
func (p *pidstats) Close() error { return p.stream.Close() }

// openRemote is what Config.Remote defaults to.
func (n *Node) openRemote() (Remote, error) {
	if n.cfg.Remote != nil {
		return n.cfg.Remote()
	}
	return newPidstats(uint16(n.cfg.PidstatPort), n.liveness.procs != nil)
}
