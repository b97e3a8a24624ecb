package netns

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Our own addresses on the bridge: clients come from one, the observer from the
// other, so that clients can be cut off and still be watched.
const (
	Clients  = "10.77.0.1"
	Observer = "10.77.0.2"
)

// Network is a bridge with hosts.
type Network struct {
	hosts []*Host
}

// Host is a network namespace with one interface.
type Host struct {
	IP    string
	port  string // the bridge's end of its cable
	space *os.File
	relay *relay // nil unless its packets are delayed
}

// New makes n hosts.
func New(n int) (*Network, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("look at the network: %w", err)
	}
	for _, l := range links {
		if l.Flags&net.FlagLoopback == 0 && l.Flags&net.FlagUp != 0 {
			return nil, fmt.Errorf("interface %s is up: hosts are made in an empty network namespace only", l.Name)
		}
	}
	w := &Network{}
	// The bridge has an address of its own. It would take the lowest of its ports else,
	// another with each that comes and goes, and the hosts would go by the old one.
	err = ip("link set lo up", "link add jx0 address 02:00:00:00:00:01 type bridge", "addr add "+Clients+"/24 dev jx0",
		"addr add "+Observer+"/24 dev jx0", "link set jx0 up")
	for i := 0; i < n && err == nil; i++ {
		err = w.add(i + 1)
	}
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// Hosts are the hosts, in order.
func (w *Network) Hosts() []*Host { return w.hosts }

// farNumber is that of a host beside the numbered ones.
const farNumber = 90

// Far makes one more host, far from the others in number.
func (w *Network) Far() (*Host, error) {
	if err := w.add(farNumber); err != nil {
		return nil, err
	}
	return w.hosts[len(w.hosts)-1], nil
}

// Close takes the network away, and lets go of the hosts: those that no process uses
// vanish.
func (w *Network) Close() error {
	var errs []error
	for _, h := range w.hosts {
		errs = append(errs, h.undelay(), ip("link del "+h.port), h.space.Close())
	}
	errs = append(errs, ip("link del jx0"))
	return errors.Join(errs...)
}

// rules drop what comes from the addresses in the set cut, refuse with a reset
// what comes from those in refused, and lose a share of all that comes from others
// while a rule in chain losing says so. A new table has nothing in its sets.
const rules = `table inet jx {
  set cut {
    type ipv4_addr
  }
  set refused {
    type ipv4_addr
  }
  chain losing {
  }
  chain in {
    type filter hook input priority 0; policy accept;
    ip saddr @cut drop
    ip saddr @refused meta l4proto tcp reject with tcp reset
    ip saddr != { ` + Observer + ` } jump losing
  }
}
`

func (w *Network) add(i int) error {
	h := &Host{IP: fmt.Sprint("10.77.0.", 10+i), port: fmt.Sprint("jxp", i)}
	var err error
	if h.space, err = newNamespace(); err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	w.hosts = append(w.hosts, h)
	inside := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), h.space.Fd())
	err = ip("link add "+h.port+" type veth peer name eth0 netns "+inside,
		"link set "+h.port+" master jx0", "link set "+h.port+" up")
	if err != nil {
		return err
	}
	return h.Within(func() error {
		err := ip("link set lo up", "addr add "+h.IP+"/24 dev eth0", "link set eth0 up")
		if err != nil {
			return err
		}
		return nft(rules)
	})
}

// Cut makes the host deaf to packets from the given addresses.
func (h *Host) Cut(from ...string) error { return h.fill("cut", from) }

// Reset makes the host answer TCP from the given addresses with resets.
func (h *Host) Reset(from ...string) error { return h.fill("refused", from) }

func (h *Host) fill(set string, from []string) error {
	if len(from) == 0 {
		return nil
	}
	return h.Within(func() error {
		return nft(fmt.Sprintf("add element inet jx %s { %s }\n", set, strings.Join(from, ", ")))
	})
}

// Lose drops percent of the packets that reach the host, at random: 99 at most.
func (h *Host) Lose(percent int) error {
	return h.Within(func() error {
		return nft(fmt.Sprintf("add rule inet jx losing numgen random mod 100 < %d drop\n", percent))
	})
}

// Deafen drops the datagrams that are sent to a port of the host.
func (h *Host) Deafen(port string) error {
	return h.Within(func() error {
		return nft(fmt.Sprintf("add rule inet jx losing udp dport %s drop\n", port))
	})
}

// Slow limits what the host sends to so many kbit/s.
func (h *Host) Slow(kbit int) error {
	return h.Within(func() error {
		return command("tc", fmt.Sprintf("qdisc add dev eth0 root tbf rate %dkbit burst 8kb latency 400ms", kbit))
	})
}

// Unplug takes the host's link down, as both ends can see.
func (h *Host) Unplug() error { return ip("link set " + h.port + " down") }

// Heal ends all of that. It may be called at any time.
func (h *Host) Heal() error {
	errs := []error{h.undelay(), ip("link set " + h.port + " up")}
	errs = append(errs, h.Within(func() error {
		err := nft("flush set inet jx cut\nflush set inet jx refused\nflush chain inet jx losing\n")
		out, _ := exec.Command("tc", "qdisc", "show", "dev", "eth0").Output()
		if strings.Contains(string(out), "tbf") {
			err = errors.Join(err, command("tc", "qdisc del dev eth0 root"))
		}
		return err
	}))
	return errors.Join(errs...)
}

// newNamespace makes a network namespace that lives as long as its descriptor.
func newNamespace() (space *os.File, err error) {
	err = onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		space, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	return space, err
}

// Within calls f in the host's network; processes that f starts are in it too.
func (h *Host) Within(f func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(int(h.space.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the network of %s: %w", h.IP, err)
		}
		return f()
	})
}

// onOwnThread calls f on a thread that goes back to our network afterwards. The
// thread must live on: processes that it has started are to die with it.
func onOwnThread(f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		// Nothing else may ever run on this thread: it stays locked.
		return errors.Join(err, fmt.Errorf("go back to our network: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}

func ip(lines ...string) error {
	for _, l := range lines {
		if err := command("ip", l); err != nil {
			return err
		}
	}
	return nil
}

func nft(script string) error {
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s (of %q)", err, strings.TrimSpace(string(out)), script)
	}
	return nil
}

func command(name, args string) error {
	out, err := exec.Command(name, strings.Fields(args)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, args, err, strings.TrimSpace(string(out)))
	}
	return nil
}
