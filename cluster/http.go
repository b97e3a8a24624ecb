package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/lockerd/lockerd/fsm"
)

const (
	// httpWait bounds what a request may wait for the cluster.
	httpWait = 15 * time.Second

	// readyWait bounds the same for a probe: load balancers are impatient.
	readyWait = 2 * time.Second

	maxBody = 256 << 10 // bytes of a request's body
)

// AdminNode is what the HTTP port needs of a node. Every call may be made from
// many goroutines at once, and ends with its context.
type AdminNode interface {
	// Report works without a leader; with digest it costs as much as a snapshot.
	Report(ctx context.Context, digest bool) (Status, error)
	Members(ctx context.Context) ([]Member, error)
	Table(ctx context.Context, stale bool) (Table, error)
	// Submit's error means that the outcome is unknown.
	Submit(ctx context.Context, c fsm.Command) (fsm.Result, error)
	// Subscribe's channel is closed when the subscriber falls behind, or cancels,
	// or when the node stops.
	Subscribe(buffer int) (<-chan fsm.Event, func())
	// Transfer hands leadership to a server, or with "" to the best one, and returns
	// the name of the leader in office. A [Refusal] says why it will not be done.
	Transfer(ctx context.Context, to string) (leader string, err error)
	// Remove takes a server out of the cluster for good. A [Refusal] says why it will not be done.
	Remove(ctx context.Context, node string, force bool) (RemovedServer, error)
	// OpenOrder asks nodes to do something, all or none. A [Refusal] says why it will not be done.
	OpenOrder(ctx context.Context, req OrderRequest, by string) (id uint64, err error)
	// FollowOrder waits for an order's next state after the one that is named; "": none.
	FollowOrder(ctx context.Context, id uint64, after string) (OrderInfo, error)
	// AbandonOrder sees to it that an order ends, as who asked for it has gone.
	AbandonOrder(id uint64)
	Orders(ctx context.Context, all bool) ([]OrderInfo, error)
	// Thaw ends orders and waits for them to be closed, but not longer than ctx. A
	// [Refusal] says that there are none such.
	Thaw(ctx context.Context, req ThawRequest, by string) ([]OrderInfo, error)
	// Ready says why the node cannot serve.
	Ready(ctx context.Context) error
	Name() string
}

// webPort serves people, scrapers and lockctl.
type webPort struct {
	node    AdminNode
	log     hclog.Logger
	hosts   map[string]bool // names of this host; others in a browser's request are a trick
	origin  *http.CrossOriginProtection
	uid     int                    // whom the node runs as
	socket  atomic.Pointer[string] // path of the admin socket; nil if there is none
	watches chan struct{}          // one token an open event stream

	orderStreams chan struct{} // one token a request that waits for an order
}

// NewHTTPServer makes the server of the HTTP port: a status page, /healthz,
// /readyz, /metrics and the JSON API under /v1/. Closing it ends event streams too.
// Who connects by a UNIX socket is known by the kernel's word, so orders are taken from
// there: serve the listener of [ListenAdmin] with it too, as it is.
// Browsers may change things only from a page that came from this port under an
// IP address, localhost, this host's name or one of names.
func NewHTTPServer(node AdminNode, log hclog.Logger, names ...string) *http.Server {
	p := &webPort{
		node: node, log: log,
		hosts:   map[string]bool{"localhost": true},
		origin:  http.NewCrossOriginProtection(),
		uid:     os.Getuid(),
		watches: make(chan struct{}, maxWatches),

		orderStreams: make(chan struct{}, maxOrderStreams),
	}
	if h, err := os.Hostname(); err == nil {
		names = append(names, h)
	}
	for _, name := range names {
		p.hosts[strings.ToLower(name)] = true
	}
	return &http.Server{
		Handler:           p.routes(),
		BaseContext:       p.serves,
		ConnContext:       withPeer,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      60 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}
}

func (p *webPort) routes() http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /{$}", p.page)
	m.HandleFunc("GET /healthz", p.health)
	m.HandleFunc("GET /readyz", p.ready)
	m.Handle("GET /metrics", p.metrics())
	m.HandleFunc("GET /v1/status", p.status)
	m.HandleFunc("GET /v1/members", p.members)
	m.HandleFunc("GET /v1/locks", p.locks)
	m.HandleFunc("GET /v1/events", p.events)
	m.HandleFunc("POST /v1/break", p.breakLocks)
	m.HandleFunc("POST /v1/transfer", p.transfer)
	m.HandleFunc("POST /v1/remove", p.remove)
	m.HandleFunc("GET /v1/orders", p.orders)
	m.HandleFunc("POST /v1/orders", p.openOrder)
	m.HandleFunc("POST /v1/orders/thaw", p.thawOrders)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
		h.Set("Cache-Control", "no-store")
		if err := p.trusted(r); err != nil {
			p.log.Warn("refused", "method", r.Method, "path", r.URL.Path, "from", r.RemoteAddr, "reason", err)
			fail(w, http.StatusForbidden, err)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		m.ServeHTTP(w, r)
	})
}

// trusted refuses requests that a foreign page makes a browser send. Such a page
// may have bent a name of its own to this address (DNS rebinding), so the name
// has to be one of ours. Programs that are no browsers send no Origin.
func (p *webPort) trusted(r *http.Request) error {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return nil
	}
	if err := p.origin.Check(r); err != nil {
		return errors.New("the request comes from a page of another origin")
	}
	if r.Header.Get("Origin") == "" && r.Header.Get("Sec-Fetch-Site") == "" {
		return nil
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if net.ParseIP(strings.Trim(host, "[]")) == nil && !p.hosts[strings.ToLower(host)] {
		return fmt.Errorf("%q is no name of this host", host)
	}
	return nil
}

// health answers as long as the process does.
func (p *webPort) health(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintln(w, "ok")
}

// ready tells a load balancer whether to send clients here.
func (p *webPort) ready(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), readyWait)
	defer cancel()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if err := p.node.Ready(ctx); err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, err)
		return
	}
	fmt.Fprintln(w, "ready")
}

// failure is the body of every answer that is no success.
type failure struct {
	Error string `json:"error"`
}

func fail(w http.ResponseWriter, code int, err error) {
	answer(w, code, failure{err.Error()})
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // the client has gone: nobody to tell
}

// failNode answers for an error of the node: it cannot do it now, but may soon.
func failNode(w http.ResponseWriter, err error) { fail(w, http.StatusServiceUnavailable, err) }
