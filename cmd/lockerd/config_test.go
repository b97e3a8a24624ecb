package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// env makes a getenv of pairs, with a home so that there is a data directory.
func env(pairs ...string) func(string) string {
	m := map[string]string{"HOME": "/home/u"}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return func(k string) string { return m[k] }
}

func configFile(t *testing.T, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "lockerd.toml")
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPrecedence(t *testing.T) {
	file := configFile(t, `
name = "file"
host = "h.file"
http = "off"
join = ["a:1", "b:2"]
bootstrap-expect = 3
insecure = true
executors = ["procs", "fs"]
hooks = "/file"
hook-timeout = "5s"
protect = ["/srv/a", "/srv/b"]
admin = "/file.sock"
`)
	o, _, err := parse([]string{"--config", file, "--name=flag"}, env("LOCKERD_NAME", "env", "LOCKERD_HOST", "h.env", "LOCKERD_DATA_DIR", "/d",
		"LOCKERD_EXECUTORS", "fs", "LOCKERD_ADMIN", "/env.sock"))
	if err != nil {
		t.Fatal(err)
	}
	if o.name != "flag" || o.host != "h.env" || o.http != off || o.dataDir != "/d" || o.expect != 3 || !o.insecure {
		t.Errorf("%+v", o)
	}
	if strings.Join(o.executors, " ") != "fs" || o.hooks != "/file" || o.hookTimeout != 5*time.Second || strings.Join(o.protect, " ") != "/srv/a /srv/b" || o.admin != "/env.sock" {
		t.Errorf("executors: %+v", o)
	}
	if strings.Join(o.join, " ") != "a:1 b:2" {
		t.Errorf("join %q", o.join)
	}
	if o.peer != "127.0.0.1:1753" {
		t.Errorf("peer %q, want the default", o.peer)
	}
}

func TestClientPort(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		env  []string
		port int
		path string
		bad  string // in the error
	}{
		{name: "default", port: 1751},
		{name: "environment", env: []string{"IPCLOCKER_PORT", "1888"}, port: 1888},
		{name: "flag before environment", args: []string{"--port", "1999"}, env: []string{"IPCLOCKER_PORT", "1888"}, port: 1999},
		{name: "our own variable first", env: []string{"IPCLOCKER_PORT", "1888", "LOCKERD_PORT", "1777"}, port: 1777},
		{name: "service name", args: []string{"--port", "ssh"}, port: 22},
		{name: "no service", args: []string{"--port", "lock-it"}, bad: "--port lock-it is neither a port number nor a service"},
		{name: "no service in the environment", env: []string{"IPCLOCKER_PORT", "lock-it"}, bad: "IPCLOCKER_PORT: lock-it"},
		{name: "out of range", args: []string{"--port", "70000"}, bad: "neither"},
		{name: "path as port", env: []string{"IPCLOCKER_PORT", "/run/l"}, path: "/run/l"},
		{name: "path goes before", args: []string{"--path", "/run/l", "--port", "5"}, path: "/run/l"},
		{name: "path before environment", args: []string{"--path", "/run/l"}, env: []string{"IPCLOCKER_PORT", "9"}, path: "/run/l"},
		{name: "old style", args: []string{"-PORT", "1666", "-nofork"}, port: 1666},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, _, err := parse(c.args, env(c.env...))
			if err != nil {
				t.Fatal(err)
			}
			if o.path != c.path {
				t.Fatalf("path %q, want %q", o.path, c.path)
			}
			if c.path != "" {
				return
			}
			port, err := o.clientPort(t.Context())
			if c.bad != "" {
				wantUsage(t, err, c.bad)
				return
			}
			if err != nil || port != c.port {
				t.Errorf("port %d, %v; want %d", port, err, c.port)
			}
		})
	}
}

func wantUsage(t *testing.T, err error, text string) {
	t.Helper()
	var usage usageError
	if !errors.As(err, &usage) {
		t.Fatalf("error %v, want a usage error with %q", err, text)
	}
	if !strings.Contains(err.Error(), text) {
		t.Errorf("error %q does not say %q", err, text)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error %q has more than one line", err)
	}
}

func TestMistakes(t *testing.T) {
	for _, c := range []struct {
		args string
		want string
	}{
		{"--bogus", "unknown option --bogus"},
		{"--p 5", "--p is short for --port and for --path"},
		{"stray", `"stray" is no option`},
		{"--bootstrap-expect x", "bootstrap-expect"},
		{"--port", "flag needs an argument"},
		{"--bootstrap-expect 10", "1 to 9 servers"},
		{"--bootstrap-expect -1", "1 to 9 servers"},
		{"--agent", "--join"},
		{"--agent --join a:1 --bootstrap-expect 3", "leave --bootstrap-expect out"},
		{"--agent --join a:1 --peer 127.0.0.1:9", "leave out --peer"},
		{"--join a:1 --bootstrap-expect 1", "leave one of them out"},
		{"--join a:1 --gossip off", "--gossip off is for a cluster of one"},
		{"--bootstrap-expect 3 --gossip off", "--gossip off is for a cluster of one"},
		{"--join a", "--join a: wants host:port"},
		{"--join 10.1.1.1:1754", "cannot reach --gossip 127.0.0.1:1754"},
		{"--http 1755", "--http 1755: wants host:port"},
		{"--http 127.0.0.1:http", `"http" is no port`},
		{"--name a\tb", "white space"},
		{"--peer 0.0.0.0:1753", "--peer 0.0.0.0:1753 lets other hosts in"},
		{"--peer :1753", "lets other hosts in"},
		{"--gossip 10.1.1.1:1754", "give --insecure"},
		{"--gossip [::]:1754", "give --insecure"},
		{"--advertise 10.1.1.1", "--advertise 10.1.1.1 calls other hosts in"},
		{"--peer 0.0.0.0:1753 --insecure", "say with --advertise"},
		{"--advertise 0.0.0.0 --insecure", "no address that others can use"},
		{"--config /nonexistent", "/nonexistent"},
		{"--executors all", `"all": there are procs, fs and checkpoint`},
		{"--hooks /etc/hooks", "say which with --executors"},
		{"--hook-timeout soon", "hook-timeout"},
		{"--hook-timeout 0s", "--hook-timeout 0s: wants more than 0"},
		{"--hook-timeout 1h", "at most 30s"},
		{"--protect data", "--protect data: wants the whole path"},
	} {
		t.Run(c.args, func(t *testing.T) {
			o, _, err := parse(strings.Split(c.args, " "), env())
			if err == nil {
				err = o.validate(t.Context())
			}
			wantUsage(t, err, c.want)
		})
	}
	for _, c := range []struct {
		uid  int
		args string
		want string
	}{
		{7, "--executors fs", "only root can freeze and checkpoint"},
		{0, "--executors fs --hooks hooks.d", "--hooks hooks.d: wants the whole path"},
	} {
		o, _, err := parse(strings.Fields(c.args), env())
		if err != nil {
			t.Fatal(err)
		}
		wantUsage(t, o.validateExecutors(c.uid), c.want)
	}
	o, _, err := parse(nil, func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	if o.dataDir == "" {
		wantUsage(t, o.validate(t.Context()), "--data-dir")
	}
	home := func(name string) string {
		return map[string]string{"HOME": "/home/u", "XDG_STATE_HOME": "/state"}[name]
	}
	server, _, err := parse(nil, home)
	if err != nil {
		t.Fatal(err)
	}
	agent, _, err := parse([]string{"--agent"}, home)
	if err != nil {
		t.Fatal(err)
	}
	if agent.dataDir != server.dataDir+"-agent" {
		t.Errorf("an agent's data in %s, a server's in %s", agent.dataDir, server.dataDir)
	}
}

func TestAccepted(t *testing.T) {
	for _, args := range []string{
		"",
		"--nofork",
		"--fork --debug",
		"--no-fork",
		"--gossip off --http off",
		"--bootstrap-expect 3 --join localhost:1754,localhost:2754",
		"--join localhost:1754",
		"--agent --join 127.0.0.1:1754",
		"--peer 0.0.0.0:1753 --gossip 0.0.0.0:1754 --advertise 10.1.1.1 --insecure --join 10.1.1.2:1754 --bootstrap-expect 3",
		"--peer localhost:1753",
		"--host 0.0.0.0",
	} {
		o, _, err := parse(strings.Fields(args), env())
		if err == nil {
			err = o.validate(t.Context())
		}
		if err != nil {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestFileMistakes(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"name = \"a\"\nprot = \"1\"\n", `line 2: unknown key "prot"`},
		{"# no\n\n[peer]\naddr = \"x\"\n", "line 3: peer: wants a text"},
		{"[tls]\ncert = \"x\"\n", `line 1: unknown key "tls"`},
		{"name = 5\n", "line 1: name: wants a text in quotes"},
		{"hook-timeout = 30\n", `line 1: hook-timeout: wants a time in quotes, as in "30s"`},
		{"\ndebug = \"yes\"\n", "line 2: debug: wants true or false"},
		{"bootstrap-expect = \"3\"\n", "wants a whole number"},
		{"pidstat-port = true\n", "line 1: pidstat-port: wants a number, or a service name"},
		{"join = [1, 2]\n", "wants a list of texts"},
		{"version = true\n", "unknown key"},
		{"config = \"b\"\n", "unknown key"},
		{"name = \"a\"\nname = \"b\"\n", "line 2"},
		{"name = \n", "line 1"},
		{"x = \"" + strings.Repeat("x", maxFile) + "\"\n", "longer than"},
	} {
		_, _, err := parse([]string{"--config", configFile(t, c.text)}, env())
		if err == nil {
			t.Errorf("%.40q was accepted", c.text)
			continue
		}
		wantUsage(t, err, c.want)
	}
}

func TestEnvironmentMistake(t *testing.T) {
	_, _, err := parse(nil, env("LOCKERD_BOOTSTRAP_EXPECT", "three"))
	wantUsage(t, err, `LOCKERD_BOOTSTRAP_EXPECT="three" in the environment`)
}

func TestStateDir(t *testing.T) {
	for _, c := range []struct {
		uid  int
		env  func(string) string
		want string
	}{
		{0, env(), "/var/lib/lockerd"},
		{1000, env(), "/home/u/.local/state/lockerd"},
		{1000, env("XDG_STATE_HOME", "/s"), "/s/lockerd"},
		{1000, env("XDG_STATE_HOME", "relative"), "/home/u/.local/state/lockerd"},
		{1000, env("HOME", ""), ""},
	} {
		if got := stateDir(c.uid, c.env); got != c.want {
			t.Errorf("uid %d: %q, want %q", c.uid, got, c.want)
		}
	}
}

func FuzzConfigFile(f *testing.F) {
	f.Add([]byte("name = \"a\"\njoin = [\"x:1\"]\n"))
	f.Add([]byte("[a.b]\nc = 1979-05-27"))
	f.Fuzz(func(t *testing.T, text []byte) {
		o := &options{set: map[string]string{}}
		err := fromText(o, flags(o), "f", text)
		var usage usageError
		if err != nil && !errors.As(err, &usage) {
			t.Fatalf("%v is no usage error", err)
		}
	})
}
