package cluster

import (
	"bytes"
	"context"
	"html/template"
	"net/http"
	"strings"
	"time"

	"github.com/lockerd/lockerd/fsm"
)

const (
	pageHolds    = 200   // holds on the status page
	pageMaxTable = 10000 // holds and waits beyond which the page lists none: a page must not cost what a dump does
)

// page answers GET / with what the node knows, for people. It waits for nobody:
// it is most needed when there is no leader.
func (p *webPort) page(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), httpWait)
	defer cancel()
	s, err := p.node.Report(ctx, false)
	if err != nil {
		failNode(w, err)
		return
	}
	v := pageView{Status: s, Up: time.Since(s.Started).Round(time.Second)}
	if v.Members, err = p.node.Members(ctx); err != nil {
		failNode(w, err)
		return
	}
	if c := s.Counts; c != nil && c.Holds+c.Waits <= pageMaxTable {
		t, err := p.node.Table(ctx, true)
		if err != nil {
			failNode(w, err)
			return
		}
		v.Holds = t.list("").Holds
		if len(v.Holds) > pageHolds {
			v.Holds = v.Holds[:pageHolds]
		}
	}
	if s.Counts != nil {
		v.More = s.Counts.Holds - len(v.Holds)
	}
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, v); err != nil {
		fail(w, http.StatusInternalServerError, err)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(b.Bytes()) // the client has gone: nobody to tell
}

// pageView is what the page shows.
type pageView struct {
	Status
	Up      time.Duration
	Members []Member
	Holds   []holdInfo
	More    int // holds not shown
}

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"join": func(s []string) string { return strings.Join(s, " ") },
	"ms": func(ms fsm.Millis) time.Duration {
		return (time.Duration(ms) * time.Millisecond).Round(100 * time.Millisecond)
	},
}).Parse(`<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{{.Name}} - lockerd</title>
<meta http-equiv="refresh" content="5">
<meta name="viewport" content="width=device-width">
<style>
body{font:15px/1.4 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#222;background:#fff}
table{border-collapse:collapse;margin:.5em 0 1.5em}td,th{text-align:left;padding:.2em 1.2em .2em 0;border-bottom:1px solid #ddd;vertical-align:top}
td.n,th.n{text-align:right}h1{font-size:1.4em}h2{font-size:1.1em}.bad{color:#a00;font-weight:bold}.dim{color:#777}
</style></head><body>
<h1>{{.Name}}: {{.Role}}</h1>
{{if not .Ready}}<p class="bad">Not ready: {{.Reason}}</p>{{end}}
<table>
<tr><th>Leader</th><td>{{if .LeaderID}}{{or .Leader .LeaderID}} ({{.LeaderAddr}}){{else}}<span class="bad">none</span>{{end}}</td></tr>
<tr><th>Term</th><td>{{.Term}}</td></tr>
<tr><th>Log</th><td>committed {{.Commit}}, applied {{.Applied}}</td></tr>
{{with .Counts}}<tr><th>Table</th><td>{{.Locks}} locks, {{.Holds}} holds, {{.Waits}} waiting</td></tr>{{end}}
<tr><th>Version</th><td>{{.Version}}, up {{.Up}}</td></tr>
</table>
<h2>Servers</h2>
<table><tr><th>Name</th><th>Peer address</th><th>Role</th><th>In touch</th></tr>
{{range .Servers}}<tr><td>{{or .Name .ID}}</td><td>{{.Addr}}</td><td>{{if .Leader}}leader{{else if .Voter}}voter{{else}}no vote{{end}}</td><td>{{if .Reachable}}yes{{else}}<span class="bad">no</span>{{end}}</td></tr>
{{end}}</table>
<h2>Members</h2>
<table><tr><th>Name</th><th>Kind</th><th>Host</th><th>Clients</th><th>Version</th></tr>
{{range .Members}}<tr><td>{{.Name}}</td><td>{{.Kind}}</td><td>{{.Host}}</td><td>{{.Client}}</td><td>{{.Version}}</td></tr>
{{end}}</table>
{{range .Members}}{{if .Note}}<p class="bad">{{.Name}} at {{.Peer}} {{.Note}}.</p>{{end}}{{end}}
<h2>Holds</h2>
{{if .Holds}}<table><tr><th>Lock</th><th>Owner</th><th class="n">Fence</th><th>Mode</th><th class="n">Held</th><th class="n">Waiting</th></tr>
{{range .Holds}}<tr><td>{{join .Locks}}</td><td>{{.Owner}}</td><td class="n">{{.Fence}}</td><td>{{.Mode}}{{with .Suspended}}, suspended by {{.By}}{{end}}</td><td class="n">{{ms .GrantedAgo}}</td><td class="n">{{.Waiters}}</td></tr>
{{end}}</table>{{end}}
{{if .More}}<p>{{.More}} {{if .Holds}}more{{end}} holds are not shown: <code>lockctl locks</code> lists all.</p>{{else if not .Holds}}<p class="dim">None.</p>{{end}}
</body></html>
`))
