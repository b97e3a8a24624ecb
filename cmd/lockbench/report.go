package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// table is what a measurement prints for people.
type table struct {
	head []string
	rows [][]any
	tail []string // lines below
}

func (t *table) add(cells ...any) { t.rows = append(t.rows, cells) }

// print writes the table with its columns aligned, numbers on the right.
func (t *table) print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, strings.Join(t.head, "\t")+"\t")
	for _, r := range t.rows {
		for _, c := range r {
			fmt.Fprint(tw, cell(c), "\t")
		}
		fmt.Fprintln(tw)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, l := range t.tail {
		fmt.Fprintln(w, l)
	}
	return nil
}

func cell(v any) string {
	switch v := v.(type) {
	case millis:
		switch f := v.float(); {
		case f >= 100:
			return fmt.Sprintf("%.0f", f)
		case f >= 10:
			return fmt.Sprintf("%.1f", f)
		default:
			return fmt.Sprintf("%.2f", f)
		}
	case bool:
		if v {
			return "yes"
		}
		return "no"
	}
	return fmt.Sprint(v)
}

// result is what a measurement has found.
type result interface {
	table() *table
}

// report prints a result.
func (p *program) report(r result) error {
	if !p.json {
		return r.table().print(p.out)
	}
	e := json.NewEncoder(p.out)
	e.SetIndent("", "  ")
	return e.Encode(r)
}
