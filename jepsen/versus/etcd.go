package versus

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/lockerd/lockerd/jepsen/proc"
)

// installed says whether there is an etcd to compare with.
func (p Programs) installed() bool { return p.Etcd != "" && p.Etcdctl != "" }

// etcd is etcd, with its default options but for addresses and names.
func etcd(p Programs, dir string, ttl time.Duration) *locker {
	l := &locker{title: etcdTitle(ttl)}
	l.about = fmt.Sprintf("%s: %d servers with default options; etcdctl, which keeps the lease alive as long as it runs itself", version(p.Etcd, "--version"), nodes)
	var cluster []string
	for i := range nodes {
		cluster = append(cluster, fmt.Sprintf("n%d=http://%s:2380", i+1, address(i)))
	}
	for i := range nodes {
		clients, peers, name := "http://"+address(i)+":2379", "http://"+address(i)+":2380", fmt.Sprintf("n%d", i+1)
		l.servers = append(l.servers, &proc.Proc{
			Name: "etcd " + name, Path: p.Etcd, Log: filepath.Join(dir, name+".log"),
			Args: []string{
				"--name", name, "--data-dir", filepath.Join(dir, name),
				"--listen-client-urls", clients, "--advertise-client-urls", clients,
				"--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers,
				"--initial-cluster", strings.Join(cluster, ","), "--initial-cluster-state", "new",
			},
		})
		l.ready = append(l.ready, clients+"/health")
	}
	l.command = func(from int, lock string, command ...string) invocation {
		var endpoints []string
		for _, a := range rotated(from) {
			endpoints = append(endpoints, a+":2379")
		}
		args := []string{p.Etcdctl, "--endpoints=" + strings.Join(endpoints, ","), "lock", fmt.Sprintf("--ttl=%d", seconds(ttl)), lock, "--"}
		return invocation{args: append(args, command...), env: []string{"ETCDCTL_API=3"}}
	}
	l.waiters = func(ctx context.Context, lock string) (int, error) {
		// A client's place is a key under the lock's name; the first has the lock.
		b, err := ask(ctx, "POST", "http://"+address(0)+":2379/v3/kv/range", etcdRange(lock))
		if err != nil {
			return 0, err
		}
		return etcdWaiters(b)
	}
	return l
}

func etcdTitle(ttl time.Duration) string { return fmt.Sprintf("etcdctl lock --ttl %d", seconds(ttl)) }

// seconds is a time as etcdctl takes it.
func seconds(d time.Duration) int { return int(d / time.Second) }

// etcdRange asks how many keys there are under a lock's name.
func etcdRange(lock string) string {
	b64 := base64.StdEncoding.EncodeToString
	// The range ends before the first name that is not "lock/...".
	return fmt.Sprintf(`{"key":%q,"range_end":%q,"count_only":true}`, b64([]byte(lock+"/")), b64([]byte(lock+"0")))
}

func etcdWaiters(answer []byte) (int, error) {
	var r struct {
		Count string `json:"count"` // absent when it is 0
	}
	if err := json.Unmarshal(answer, &r); err != nil {
		return 0, fmt.Errorf("read how many keys there are: %w", err)
	}
	if r.Count == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(r.Count)
	if err != nil {
		return 0, fmt.Errorf("read how many keys there are: %w", err)
	}
	return max(0, n-1), nil
}
