package farm

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
)

// address is where a node listens: host, and five ports in a row as the defaults
// of lockerd are, of which it uses four.
type address struct {
	host string
	base int
}

func (a address) client() string { return a.port(0) }
func (a address) peer() string   { return a.port(2) }
func (a address) gossip() string { return a.port(3) }
func (a address) http() string   { return a.port(4) }

func (a address) port(i int) string { return net.JoinHostPort(a.host, fmt.Sprint(a.base+i)) }

// loopback finds addresses for n nodes: the same ports at neighbouring addresses,
// as real hosts have them. They are outside of the usual range of
// ip_local_port_range, ip(7), and at an address that is taken at random, so that
// farms that start at once do not meet.
func loopback(n int) ([]address, error) {
	for range 100 {
		net, base := fmt.Sprintf("127.%d.%d", 1+rand.IntN(250), 1+rand.IntN(250)), 10_000+5*rand.IntN(4_000)
		addrs := make([]address, n)
		free := true
		for i := range addrs {
			addrs[i] = address{fmt.Sprintf("%s.%d", net, i+1), base}
			free = free && addrs[i].free()
		}
		if free {
			return addrs, nil
		}
	}
	return nil, errors.New("no free ports on loopback")
}

// free says whether all ports could be opened just now.
func (a address) free() bool {
	for i := range 5 {
		l, err := net.Listen("tcp", a.port(i))
		if err != nil {
			return false
		}
		_ = l.Close()
	}
	p, err := net.ListenPacket("udp", a.gossip())
	if err != nil {
		return false
	}
	_ = p.Close()
	return true
}
