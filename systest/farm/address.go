package farm

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
)

// Address is where a node listens: on a host, and there on ports in a row, in the
// order of the defaults of lockerd.
type Address struct {
	Host string
	Port int // of clients
}

// Client is the address of the client port.
func (a Address) Client() string { return a.port(0) }

// Peer is the address of the peer port.
func (a Address) Peer() string { return a.port(2) }

// Gossip is the address of the gossip port.
func (a Address) Gossip() string { return a.port(3) }

// HTTP is the address of the HTTP port.
func (a Address) HTTP() string { return a.port(4) }

func (a Address) port(i int) string { return net.JoinHostPort(a.Host, fmt.Sprint(a.Port+i)) }

// Loopback finds addresses for n nodes: the same ports at neighbouring addresses,
// as real hosts have them. They are outside of the usual range of
// ip_local_port_range, ip(7), and at an address that is taken at random, so that
// farms that start at once do not meet.
func Loopback(n int) ([]Address, error) {
	for range 100 {
		net, base := fmt.Sprintf("127.%d.%d", 1+rand.IntN(250), 1+rand.IntN(250)), 10_000+5*rand.IntN(4_000)
		addrs := make([]Address, n)
		free := true
		for i := range addrs {
			addrs[i] = Address{fmt.Sprintf("%s.%d", net, i+1), base}
			free = free && addrs[i].free()
		}
		if free {
			return addrs, nil
		}
	}
	return nil, errors.New("no free ports on loopback")
}

// free says whether all ports could be opened just now.
func (a Address) free() bool {
	for i := range 5 {
		l, err := net.Listen("tcp", a.port(i))
		if err != nil {
			return false
		}
		_ = l.Close()
	}
	p, err := net.ListenPacket("udp", a.Gossip())
	if err != nil {
		return false
	}
	_ = p.Close()
	return true
}
