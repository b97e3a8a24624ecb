package client

import (
	"bufio"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestSplitHosts(t *testing.T) {
	for list, want := range map[string][]string{
		"a":                     {"a"},
		"a:b:c":                 {"a", "b", "c"},
		"a:1752":                {"a:1752"},
		"a:1752:b:c:7":          {"a:1752", "b", "c:7"},
		"10.0.0.1:10.0.0.2":     {"10.0.0.1", "10.0.0.2"},
		"[::1]":                 {"[::1]"},
		"[::1]:1752":            {"[::1]:1752"},
		"[::1]:a:[fe80::2]:9:b": {"[::1]", "a", "[fe80::2]:9", "b"},
		"::1":                   {"[::1]"},
		"fe80::1:2":             {"[fe80::1:2]"},
		"x::y":                  {"x", "y"},
		"a::b":                  {"[a::b]"},   // an address as good as any
		"a:1:2":                 {"a:1", "2"}, // a host has one port
		"1752":                  {"1752"},
		"a:0":                   {"a", "0"}, // no port
		"[":                     {"["},
		"":                      nil,
		":":                     nil,
		"/run/a:/run/b":         {"/run/a", "/run/b"},
	} {
		if got := SplitHosts(list); !reflect.DeepEqual(got, want) {
			t.Errorf("SplitHosts(%q) = %q, want %q", list, got, want)
		}
	}
}

func TestEndpoints(t *testing.T) {
	for _, tc := range []struct {
		name             string
		o                Options
		envHost, envPort string
		want             string
		err              string
	}{
		{name: "nothing given", want: "tcp localhost:1751"},
		{name: "environment", envHost: "a:b", envPort: "99", want: "tcp a:99 tcp b:99"},
		{name: "options before environment", o: Options{Hosts: []string{"x"}, Port: "1"}, envHost: "a", envPort: "99", want: "tcp x:1"},
		{name: "a host's own port", o: Options{Hosts: []string{"x:7", "[::1]:8", "::2", "y"}}, want: "tcp x:7 tcp [::1]:8 tcp [::2]:1751 tcp y:1751"},
		{name: "a path in the environment", envPort: "/run/l", want: "unix /run/l"},
		{name: "a path as port", o: Options{Port: "/run/l"}, envHost: "a", want: "unix /run/l"},
		{name: "family UNIX", o: Options{Family: UNIX}, want: "unix " + DefaultSocket},
		{name: "family UNIX with a relative path", o: Options{Family: UNIX, Port: "s"}, want: "unix s"},
		{name: "paths as hosts", o: Options{Hosts: []string{"/run/a", "b"}}, want: "unix /run/a tcp b:1751"},
		{name: "a service", o: Options{Port: "domain"}, want: "tcp localhost:53"},
		{name: "no such service", o: Options{Port: "frob"}, err: `port "frob" is neither`},
		{name: "no such port", envPort: "70000", err: `port "70000" is neither`},
		{name: "a path with family INET", o: Options{Family: INET, Port: "/run/l"}, err: "is neither"},
		{name: "no host", envHost: ":", err: "no host"},
		{name: "half a port", o: Options{Hosts: []string{"a:"}}, err: "is no host"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("IPCLOCKER_HOST", tc.envHost)
			t.Setenv("IPCLOCKER_PORT", tc.envPort)
			list, err := tc.o.endpoints()
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("error %v, want %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, e := range list {
				got = append(got, e.network, e.addr)
			}
			if strings.Join(got, " ") != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestServicePort(t *testing.T) {
	const file = `
# lockerd 1/tcp
lockerd		1851/udp
locker	5/tcp	lockerd-not
lockerd		1951/tcp	lockd ipclocker # the lock server
broken
bad	x/tcp	alias
`
	for name, want := range map[string]string{
		"lockerd": "1951", "ipclocker": "1951", "locker": "5", "alias": "", "1951/tcp": "", "broken": "", "none": "",
	} {
		if got := servicePort(bufio.NewScanner(strings.NewReader(file)), name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestFQDN(t *testing.T) {
	for _, tc := range []struct {
		name, host, resolv, hosts, cname, want string
	}{
		{name: "nothing known", host: "h", want: "h"},
		{name: "a dot already", host: "h.a.b", resolv: "search c.d", want: "h.a.b"},
		{name: "resolv.conf", host: "h", resolv: "nameserver 1.2.3.4\nsearch a.b c.d\n", cname: "h.x.y", want: "h.a.b"},
		{name: "the last one counts", host: "h", resolv: "domain a.b\n search c.d\n", want: "h.c.d"},
		{name: "a domain without a dot", host: "h", resolv: "search local\n", cname: "h.x.y", want: "h"},
		{name: "hosts", host: "h", hosts: "127.0.0.1 localhost\n10.0.0.1 h.a.b h # x\n", want: "h.a.b"},
		{name: "hosts, alias", host: "h", hosts: "10.0.0.1 h h.a.b\n", want: "h.a.b"},
		{name: "hosts without a domain", host: "h", hosts: "10.0.0.1 h other.a.b\n", want: "h"},
		{name: "the resolver", host: "h", hosts: "127.0.0.1 localhost\n", cname: "h.x.y", want: "h.x.y"},
		{name: "the resolver is not asked", host: "h", hosts: "127.0.0.1 h\n", cname: "h.x.y", want: "h"},
	} {
		got := fqdn(tc.host, []byte(tc.resolv), []byte(tc.hosts), func(string) string { return tc.cname })
		if got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestOptionsThatMakeNoSense(t *testing.T) {
	for name, o := range map[string]Options{
		"a blank in a name":  {Locks: []string{"my lock"}},
		"a line in a name":   {Locks: []string{"x\nBREAK_LOCK"}},
		"an empty name":      {Locks: []string{""}},
		"a long name":        {Locks: []string{strings.Repeat("x", 1025)}},
		"too many names":     {Locks: make([]string, 65)},
		"a blank in a user":  {User: "a b"},
		"shared and slots":   {Shared: true, Slots: 1},
		"a negative pid":     {PID: -1},
		"a negative limit":   {HoldLimit: -2},
		"a negative wait":    {WaitLimit: -1},
		"a lease too short":  {Lease: time.Second},
		"a negative attempt": {ConnectTries: -1},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func FuzzSplitHosts(f *testing.F) {
	f.Add("a:1752:[::1]:7:/run/x")
	f.Add("::1")
	f.Fuzz(func(t *testing.T, list string) {
		if len(list) > 1000 {
			return
		}
		for _, h := range SplitHosts(list) {
			if h == "" {
				t.Errorf("%q has an empty host", list)
			}
			host, port, err := splitHostPort(h)
			if err == nil && port != "" && host == "" {
				t.Errorf("%q: %q has a port and no host", list, h)
			}
			if a, err := netip.ParseAddr(host); err == nil && a.Is4() && strings.Contains(h, "[") && !strings.HasPrefix(h, "[") {
				t.Errorf("%q: %q", list, h)
			}
		}
	})
}
