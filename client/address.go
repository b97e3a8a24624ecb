package client

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// defaultPort is the line protocol's when neither the environment nor
// /etc/services says otherwise.
const defaultPort = "1751"

// endpoint is where a server listens: a network of net.Dial and an address.
type endpoint struct{ network, addr string }

func (e endpoint) String() string { return e.addr }

// endpoints resolves where the servers of o are, in the order to try them.
func (o *Options) endpoints() ([]endpoint, error) {
	hosts := o.Hosts
	if len(hosts) == 0 {
		env := os.Getenv("IPCLOCKER_HOST")
		if env == "" {
			env = "localhost"
		}
		hosts = SplitHosts(env)
	}
	port := o.Port
	if port == "" {
		port = os.Getenv("IPCLOCKER_PORT")
	}
	if o.Family == UNIX && port == "" {
		port = DefaultSocket
	}
	if o.Family != INET && (o.Family == UNIX || strings.HasPrefix(port, "/")) {
		return []endpoint{{"unix", port}}, nil
	}
	var all []endpoint
	for _, h := range hosts {
		if strings.HasPrefix(h, "/") {
			all = append(all, endpoint{"unix", h})
			continue
		}
		host, p, err := splitHostPort(h)
		if err != nil {
			return nil, err
		}
		if p == "" {
			p = port
		}
		if p, err = portNumber(p); err != nil {
			return nil, err
		}
		all = append(all, endpoint{"tcp", net.JoinHostPort(host, p)})
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no host in %q", hosts)
	}
	return all, nil
}

// SplitHosts reads a list in the form of IPCLOCKER_HOST: hosts with colons between, as ever. A number
// after a host is its port, since no host is called so; IPv6 addresses stand in
// brackets, unless one is all there is.
func SplitHosts(list string) []string {
	if a, err := netip.ParseAddr(list); err == nil && a.Is6() {
		return []string{"[" + list + "]"}
	}
	var hosts []string
	for rest := list; rest != ""; {
		var h string
		end := -1
		if strings.HasPrefix(rest, "[") {
			end = strings.IndexByte(rest, ']')
		}
		if i := strings.IndexByte(rest[end+1:], ':'); i < 0 {
			h, rest = rest, ""
		} else {
			h, rest = rest[:end+1+i], rest[end+2+i:]
		}
		if h == "" {
			continue
		}
		if n := len(hosts); n > 0 && isPort(h) && !strings.HasPrefix(hosts[n-1], "/") && !hasPort(hosts[n-1]) {
			hosts[n-1] += ":" + h
			continue
		}
		hosts = append(hosts, h)
	}
	return hosts
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

func hasPort(host string) bool {
	_, port, err := splitHostPort(host)
	return err == nil && port != ""
}

// splitHostPort takes host, host:port, v6, [v6] and [v6]:port.
func splitHostPort(s string) (host, port string, err error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Is6() {
		return s, "", nil
	}
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		return s[1 : len(s)-1], "", nil
	}
	if !strings.Contains(s, ":") {
		return s, "", nil
	}
	host, port, err = net.SplitHostPort(s)
	if err != nil || host == "" || port == "" {
		return "", "", fmt.Errorf("%q is no host, host:port or [v6]:port", s)
	}
	return host, port, nil
}

// portNumber turns a port or service, or nothing, into a port.
func portNumber(p string) (string, error) {
	if isPort(p) {
		return p, nil
	}
	name := p
	if p == "" {
		name = "lockerd"
	}
	f, err := os.Open("/etc/services")
	if err == nil {
		defer f.Close()
		if n := servicePort(bufio.NewScanner(f), name); n != "" {
			return n, nil
		}
	}
	if p == "" {
		return defaultPort, nil
	}
	return "", fmt.Errorf("port %q is neither a number from 1 to 65535 nor a service of /etc/services", p)
}

// servicePort finds a TCP service in the format of services(5), by its name or an alias.
func servicePort(lines *bufio.Scanner, name string) string {
	for lines.Scan() {
		text, _, _ := strings.Cut(lines.Text(), "#")
		if !strings.Contains(text, name) {
			continue
		}
		f := strings.Fields(text)
		if len(f) < 2 {
			continue
		}
		port, proto, _ := strings.Cut(f[1], "/")
		if proto != "tcp" || !isPort(port) {
			continue
		}
		for i, w := range f {
			if i != 1 && w == name {
				return port
			}
		}
	}
	return ""
}

// describe names servers for people: "a or b:1752".
func describe(all []endpoint) string {
	names := make([]string, len(all))
	for i, e := range all {
		names[i] = e.addr
	}
	return strings.Join(names, " or ")
}
