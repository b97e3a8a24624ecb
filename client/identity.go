package client

import (
	"bytes"
	"context"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lockerd/lockerd/pidprobe"
)

// DefaultUser is the owner that IPC::Locker makes up: host_pid_USER, where an
// empty USER leaves its underscore.
func DefaultUser(pid int) string {
	return FQDN() + "_" + strconv.Itoa(pid) + "_" + os.Getenv("USER")
}

// FQDN is this host's name as Perl's Net::Domain::hostfqdn finds it, so that
// clients of both kinds mean the same host: the kernel's name, and if that has no
// dot the domain of resolv.conf, or else of what the host is called in /etc/hosts
// or DNS. It is looked up once, in at most a second.
var FQDN = sync.OnceValue(func() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		return "localhost"
	}
	resolv, _ := os.ReadFile("/etc/resolv.conf")
	hosts, _ := os.ReadFile("/etc/hosts")
	return fqdn(strings.Trim(host, "."), resolv, hosts, func(name string) string {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		cname, err := net.DefaultResolver.LookupCNAME(ctx, name)
		if err != nil {
			return ""
		}
		return strings.TrimSuffix(cname, ".")
	})
})

// fqdn decides from the text of the two files; canonical asks the resolver.
func fqdn(host string, resolv, hosts []byte, canonical func(string) string) string {
	if strings.Contains(host, ".") {
		return host
	}
	domain, given := "", false
	for line := range bytes.Lines(resolv) {
		f := bytes.Fields(line)
		if len(f) >= 2 && (string(f[0]) == "domain" || string(f[0]) == "search") {
			domain, given = string(f[1]), true
		}
	}
	if given {
		if strings.Contains(domain, ".") {
			return host + "." + domain
		}
		return host
	}
	listed := false
	for line := range bytes.Lines(hosts) {
		line, _, _ = bytes.Cut(line, []byte("#"))
		f := bytes.Fields(line)
		if len(f) < 2 || !containsWord(f[1:], host) {
			continue
		}
		listed = true
		for _, name := range f[1:] {
			if d := domainOf(string(name)); d != "" && containsWord(f[1:], host+"."+d) {
				return host + "." + d
			}
		}
	}
	if !listed {
		if d := domainOf(canonical(host)); d != "" {
			return host + "." + d
		}
	}
	return host
}

func containsWord(words [][]byte, w string) bool {
	for _, x := range words {
		if string(x) == w {
			return true
		}
	}
	return false
}

// domainOf is what follows the first label.
func domainOf(name string) string {
	i := strings.IndexByte(name, '.')
	if i <= 0 {
		return ""
	}
	return name[i+1:]
}

// isDead says whether it is certain that a process of this host has ended.
func isDead(pid int) bool {
	p, err := pidprobe.ParsePID(strconv.Itoa(pid))
	return err == nil && pidprobe.Check(pidprobe.Process{PID: p}) == pidprobe.Dead
}
