package cluster

import (
	"context"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metric is one series that is read off the node's status at every scrape.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	of   func(*Status) float64
}

func series(name, help string, kind prometheus.ValueType, of func(*Status) float64) metric {
	return metric{prometheus.NewDesc("lockerd_"+name, help, nil, nil), kind, of}
}

// nodeCollector turns the node's status into metrics.
type nodeCollector struct {
	node  AdminNode
	build *prometheus.Desc
	ended *prometheus.Desc // of servers alone, as the next
	all   []metric
	table []metric
}

func newNodeCollector(node AdminNode) *nodeCollector {
	const gauge, counter = prometheus.GaugeValue, prometheus.CounterValue
	yes := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	return &nodeCollector{
		node:  node,
		build: prometheus.NewDesc("lockerd_build_info", "1, with the node's version, name and role.", []string{"version", "name", "role"}, nil),
		ended: prometheus.NewDesc("lockerd_orders_ended_total", "Orders that have ended since the cluster began, by reason.", []string{"reason"}, nil),
		all: []metric{
			series("ready", "Whether a leader is in reach.", gauge, func(s *Status) float64 { return yes(s.Ready) }),
			series("is_leader", "Whether this node leads.", gauge, func(s *Status) float64 { return yes(s.Role == "leader") }),
			series("start_time_seconds", "When the node started, in seconds since 1970.", gauge, func(s *Status) float64 { return float64(s.Started.UnixNano()) / 1e9 }),
			series("servers", "Servers that the node knows of.", gauge, func(s *Status) float64 { return float64(len(s.Servers)) }),
			series("servers_reachable", "Servers that it is in touch with, itself included.", gauge, func(s *Status) float64 {
				n := 0
				for _, v := range s.Servers {
					if v.Reachable {
						n++
					}
				}
				return float64(n)
			}),
			series("raft_term", "The term: it grows with every election.", gauge, func(s *Status) float64 { return float64(s.Term) }),
		},
		table: []metric{
			series("raft_commit_index", "Last log entry known to be committed.", gauge, func(s *Status) float64 { return float64(s.Commit) }),
			series("raft_applied_index", "Last log entry applied here.", gauge, func(s *Status) float64 { return float64(s.Applied) }),
			series("locks", "Locks held or waited for.", gauge, func(s *Status) float64 { return float64(s.Counts.Locks) }),
			series("holds", "Holds.", gauge, func(s *Status) float64 { return float64(s.Counts.Holds) }),
			series("waits", "Requests queued.", gauge, func(s *Status) float64 { return float64(s.Counts.Waits) }),
			series("table_nodes", "Nodes that take part in the table.", gauge, func(s *Status) float64 { return float64(s.Counts.Nodes) }),
			series("orders", "Orders that are open.", gauge, func(s *Status) float64 { return float64(s.Counts.Orders) }),
			series("grants_total", "Holds granted since the cluster began.", counter, func(s *Status) float64 { return float64(s.Counts.Fence) }),
			series("queued_total", "Requests ever queued since the cluster began.", counter, func(s *Status) float64 { return float64(s.Counts.Ticket) }),
		},
	}
}

// Describe implements prometheus.Collector.
func (c *nodeCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.build
	ch <- c.ended
	for _, m := range append(c.all, c.table...) {
		ch <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (c *nodeCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), httpWait)
	defer cancel()
	s, err := c.node.Report(ctx, false)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(c.build, err)
		return
	}
	ch <- prometheus.MustNewConstMetric(c.build, prometheus.GaugeValue, 1, s.Version, s.Name, s.Role)
	list := c.all
	if s.Counts != nil {
		list = append(list[:len(list):len(list)], c.table...)
		for reason, n := range s.Counts.OrdersEnded {
			ch <- prometheus.MustNewConstMetric(c.ended, prometheus.CounterValue, float64(n), reason)
		}
	}
	for _, m := range list {
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.of(&s))
	}
}

// metrics answers GET /metrics in Prometheus's text format.
func (p *webPort) metrics() http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(newNodeCollector(p.node), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}
