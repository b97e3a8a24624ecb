package main

import (
	"context"
	"errors"
	"fmt"
	"html/template"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"time"

	"github.com/lockerd/lockerd/jepsen/check"
	"github.com/lockerd/lockerd/jepsen/report"
	"github.com/lockerd/lockerd/jepsen/run"
)

// shutdownTime is how long requests under way may take when the server ends.
const shutdownTime = 2 * time.Second

func cmdServe(ctx context.Context, args []string, out io.Writer) (int, error) {
	fs := newFlags("serve", "[OPTION]... [ADDRESS]", out)
	root := fs.String("store", "store", "`directory` of the stored runs")
	if err := parse(fs, args, 0, 1); err != nil {
		return exitPass, err
	}
	addr := "127.0.0.1:8080"
	if fs.NArg() == 1 {
		addr = fs.Arg(0)
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return exitHarness, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		if err := listing.Execute(w, stored(*root)); err != nil {
			fmt.Fprintln(out, err)
		}
	})
	mux.Handle("GET /", http.FileServer(http.Dir(*root)))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	defer context.AfterFunc(ctx, func() {
		end, cancel := context.WithTimeout(context.Background(), shutdownTime)
		defer cancel()
		_ = srv.Shutdown(end)
	})()
	fmt.Fprintf(out, "http://%s/ shows the runs in %s\n", ln.Addr(), *root)
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return exitHarness, err
	}
	return exitPass, nil
}

type entry struct {
	Name    string
	Page    string
	Config  run.Config
	Verdict check.Verdict
}

// stored lists the runs, the latest first. What is no run, or has no verdict, is
// shown as such.
func stored(root string) []entry {
	paths, _ := filepath.Glob(filepath.Join(root, "*", "config.json")) // the pattern is sound
	var all []entry
	for _, p := range paths {
		dir := filepath.Dir(p)
		e := entry{Name: filepath.Base(dir), Page: report.Index, Verdict: "broken off"}
		e.Config, _ = run.LoadConfig(dir)
		if results, err := run.LoadResults(dir); err == nil {
			e.Verdict = check.Overall(results)
		}
		all = append(all, e)
	}
	slices.Reverse(all)
	return all
}

var listing = template.Must(template.New("list").Parse(`<!DOCTYPE html>
<title>runs</title><style>body { font: 14px sans-serif } td { padding: 2px 10px }
.pass { color: #1a7f37 } .fail { color: #c0392b }</style>
<h1>{{len .}} runs</h1><table>{{range .}}
<tr><td class="{{.Verdict}}">{{.Verdict}}<td><a href="{{.Name}}/{{.Page}}">{{.Name}}</a><td>{{.Config.Time}}{{end}}
</table>`))
