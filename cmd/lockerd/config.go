package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/spf13/pflag"
)

const (
	defaultPort = 1751
	maxFile     = 1 << 20 // bytes of a configuration file
	maxExpect   = 9       // servers of a cluster
)

// fromFile fills in options from a TOML file whose keys are the options' names.
func fromFile(o *options, fs *pflag.FlagSet, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return usagef("read the configuration: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return usagef("read the configuration: %w", err)
	}
	if len(text) > maxFile {
		return usagef("%s is longer than %d bytes: is it a configuration?", path, maxFile)
	}
	return fromText(o, fs, path, text)
}

func fromText(o *options, fs *pflag.FlagSet, path string, text []byte) error {
	var doc map[string]any
	if _, err := toml.Decode(string(text), &doc); err != nil {
		var pe toml.ParseError
		if errors.As(err, &pe) {
			return usagef("%s, line %d: %s", path, pe.Position.Line, pe.Message)
		}
		return usagef("%s: %w", path, err)
	}
	for _, key := range slices.Sorted(maps.Keys(doc)) {
		where := fmt.Sprintf("%s, line %d", path, lineOf(text, key))
		flag := fs.Lookup(key)
		if flag == nil || flagOnly[key] || key == "config" {
			return usagef("%s: unknown key %q: keys are the names of options, see lockerd --help", where, key)
		}
		v, err := tomlValue(doc[key], kindOf(flag))
		if err == nil && o.set[key] == "" {
			err = fs.Set(key, v)
			o.set[key] = key + " in " + path
		}
		if err != nil {
			return usagef("%s: %s: %s", where, key, reason(err))
		}
	}
	return nil
}

// kindOf is the type of an option's value. A port may be a number or a name.
func kindOf(f *pflag.Flag) string {
	if f.Name == "port" || f.Name == "pidstat-port" {
		return "port"
	}
	return f.Value.Type()
}

// tomlValue gives a value in the form of a command line's, if it has the type
// that the option has.
func tomlValue(v any, kind string) (string, error) {
	switch v := v.(type) {
	case string:
		if kind == "string" || kind == "stringSlice" || kind == "duration" || kind == "port" {
			return v, nil
		}
	case int64:
		if kind == "int" || kind == "port" {
			return strconv.FormatInt(v, 10), nil
		}
	case bool:
		if kind == "bool" {
			return strconv.FormatBool(v), nil
		}
	case []any:
		words := make([]string, len(v))
		for i, e := range v {
			s, ok := e.(string)
			if !ok || kind != "stringSlice" {
				return "", errors.New("wants " + wants[kind])
			}
			words[i] = s
		}
		return strings.Join(words, ","), nil
	}
	return "", errors.New("wants " + wants[kind])
}

var wants = map[string]string{
	"string":      `a text in quotes`,
	"port":        `a number, or a service name in quotes`,
	"stringSlice": `a list of texts in quotes`,
	"duration":    `a time in quotes, as in "30s"`,
	"int":         `a whole number`,
	"bool":        `true or false`,
}

// lineOf finds the line of a top-level key or table. The decoder does not tell.
func lineOf(text []byte, key string) int {
	sc := bufio.NewScanner(bytes.NewReader(text))
	sc.Buffer(nil, maxFile+1)
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimLeft(sc.Text(), " \t[\"'")
		if rest, ok := strings.CutPrefix(line, key); ok && (rest == "" || strings.ContainsRune(" \t=.]\"'", rune(rest[0]))) {
			return n
		}
	}
	return 1
}

// validate checks how the options go together. Each message says what to do.
func (o *options) validate(ctx context.Context) error {
	switch {
	case o.expect < 0 || o.expect > maxExpect:
		return usagef("--bootstrap-expect %d: a cluster has 1 to %d servers; 3 or 5 are usual", o.expect, maxExpect)
	case o.agent && len(o.join) == 0:
		return usagef("--agent needs servers to work with: give the gossip address of one or more with --join")
	case o.agent && o.expect != 0:
		return usagef("--agent has no vote, so it cannot found a cluster: leave --bootstrap-expect out")
	case o.agent && o.set["peer"] != "":
		return usagef("--agent serves no peers: leave out %s", o.set["peer"])
	case o.expect == 1 && len(o.join) > 0:
		return usagef("--bootstrap-expect 1 founds a cluster of one, --join joins one: leave one of them out")
	case o.gossip == off && (o.agent || len(o.join) > 0 || o.expect > 1):
		return usagef("--gossip off is for a cluster of one: nodes find each other by gossip")
	case o.dataDir == "" && !o.agent:
		return usagef("no place for the node's data is known ($HOME is not set): give one with --data-dir")
	case strings.ContainsAny(o.name, " \t\r\n") || len(o.name) > 255:
		return usagef("--name %q: a name has no white space and at most 255 bytes", o.name)
	}
	for _, a := range o.join {
		host, _, err := splitAddress(a)
		if err != nil {
			return usagef("--join %s: %w", a, err)
		}
		if ip := net.ParseIP(host); ip != nil && !ip.IsLoopback() {
			if h, _, err := net.SplitHostPort(o.gossip); err == nil && loopback(ctx, h) {
				return usagef("--join %s is on another host, which cannot reach --gossip %s: give an address of the network", a, o.gossip)
			}
		}
	}
	if o.http != off {
		if _, _, err := splitAddress(o.http); err != nil {
			return usagef("--http %s: %w", o.http, err)
		}
	}
	if err := o.validateExecutors(os.Geteuid()); err != nil {
		return err
	}
	return o.validateReach(ctx)
}

// What --executors can name.
const (
	executorProcs      = "procs"
	executorFS         = "fs"
	executorCheckpoint = "checkpoint"
)

func (o *options) validateExecutors(uid int) error {
	for _, x := range o.executors {
		switch x {
		case executorProcs, executorFS, executorCheckpoint:
		default:
			return usagef("--executors %q: there are procs, fs and checkpoint", x)
		}
	}
	on := len(o.executors) > 0
	switch {
	case on && uid != 0:
		return usagef("--executors: only root can freeze and checkpoint: run lockerd as root, or leave it out")
	case o.hooks != "" && !on:
		return usagef("--hooks are run by executors: say which with --executors")
	case o.hooks != "" && !filepath.IsAbs(o.hooks):
		return usagef("--hooks %s: wants the whole path from /", o.hooks)
	case o.hookTimeout <= 0 || o.hookTimeout > maxHookTimeout:
		return usagef("--hook-timeout %v: wants more than 0 and at most %v", o.hookTimeout, maxHookTimeout)
	}
	for _, p := range o.protect {
		if !filepath.IsAbs(p) {
			return usagef("--protect %s: wants the whole path from /", p)
		}
	}
	return nil
}

// maxHookTimeout is what remains of the time that nodes have to prepare for an order.
const maxHookTimeout = 30 * time.Second

// validateReach checks what other hosts can reach, and whether they can.
func (o *options) validateReach(ctx context.Context) error {
	ports := []struct{ flag, addr string }{{"peer", o.peer}, {"gossip", o.gossip}}
	for _, p := range ports {
		if p.flag == "peer" && o.agent || p.addr == off && p.flag == "gossip" {
			continue
		}
		host, _, err := splitAddress(p.addr)
		if err != nil {
			return usagef("--%s %s: %w", p.flag, p.addr, err)
		}
		if !o.insecure && !loopback(ctx, host) {
			return usagef("--%s %s lets other hosts in, and there is neither encryption nor a key: keep it on 127.0.0.1, or, on a network where you trust everyone, give --insecure", p.flag, p.addr)
		}
		if ip := net.ParseIP(host); o.advertise == "" && (host == "" || ip != nil && ip.IsUnspecified()) {
			return usagef("--%s %s is every address of this host: say with --advertise which one others shall use", p.flag, p.addr)
		}
	}
	if o.advertise == "" {
		return nil
	}
	host := o.advertise
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		return usagef("--advertise %s is no address that others can use", o.advertise)
	}
	if !o.insecure && !loopback(ctx, host) {
		return usagef("--advertise %s calls other hosts in, and there is neither encryption nor a key: on a network where you trust everyone, give --insecure", o.advertise)
	}
	return nil
}

// splitAddress checks host:port, where the host may be empty and the port is a number.
func splitAddress(addr string) (host string, port uint16, err error) {
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, errors.New("wants host:port")
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("%q is no port: a number from 0 to 65535", p)
	}
	return host, uint16(n), nil
}

// loopback says whether host is an address of this host only, or a name for such.
func loopback(ctx context.Context, host string) bool {
	if host == "" {
		return false
	}
	if ip := net.ParseIP(host); ip != nil {
		return ip.IsLoopback()
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupIPAddr(ctx, host)
	if err != nil || len(addrs) == 0 {
		return false
	}
	return !slices.ContainsFunc(addrs, func(a net.IPAddr) bool { return !a.IP.IsLoopback() })
}

// clientPort is the number of the client port: given, or that of the service
// lockerd in /etc/services, or 1751. A name that is no service is an error;
// IPC::Locker took it for 1751.
func (o *options) clientPort(ctx context.Context) (int, error) {
	if o.port == "" {
		if n, err := net.DefaultResolver.LookupPort(ctx, "tcp", "lockerd"); err == nil {
			return n, nil
		}
		return defaultPort, nil
	}
	n, err := net.DefaultResolver.LookupPort(ctx, "tcp", o.port)
	if err != nil || n < 0 || n > 65535 {
		from := o.set["port"]
		if from == "" || from == "--port" {
			return 0, usagef("--port %s is neither a port number nor a service in /etc/services", o.port)
		}
		return 0, usagef("%s: %s is neither a port number nor a service in /etc/services", from, o.port)
	}
	return n, nil
}
