package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
)

// thawRequest is the body of POST /v1/orders/thaw.
type thawRequest struct {
	ID     uint64 `json:"id,omitempty"`
	Node   string `json:"node,omitempty"`
	Action string `json:"action,omitempty"`
	All    bool   `json:"all,omitempty"`
}

func (p *program) thawCommand() *cobra.Command {
	return p.thawing("thaw", "freeze", "Let processes go on that freeze has stopped",
		`  lockctl thaw 17
  lockctl thaw --node n3
  lockctl thaw --all`)
}

func (p *program) fsthawCommand() *cobra.Command {
	return p.thawing("fsthaw", "fsfreeze", "Thaw file systems that fsfreeze has frozen",
		`  lockctl fsthaw 17
  lockctl fsthaw --node db1
  lockctl fsthaw --all`)
}

func (p *program) thawing(name, action, short, example string) *cobra.Command {
	var node string
	var all bool
	c := &cobra.Command{
		Use:   name + " [ID...|--node NODE|--all]",
		Short: short,
		Long: name + ` ends orders of ` + action + `: those with the numbers given, all that concern a node, or
all there are. It thaws on every node that has part in them, and returns when that is done.

Exit status 0 says that each of them stood still, on all its nodes, until now: a copy made
meanwhile is good. It is 76 if one had ended before, for whatever reason, or on one node only;
1 if there is none such. With --node and --all, orders that are closed already are not looked at.`,
		Example: example,
		RunE: func(cmd *cobra.Command, ids []string) error {
			given := 0
			for _, is := range []bool{len(ids) > 0, node != "", all} {
				if is {
					given++
				}
			}
			if given != 1 {
				return errors.New("which orders? give either their numbers, as in lockctl orders, or --node or --all")
			}
			requests := []thawRequest{{Node: node, Action: action, All: all}}
			if len(ids) > 0 {
				requests = nil
			}
			for _, s := range ids {
				id, err := strconv.ParseUint(s, 10, 64)
				if err != nil || id == 0 {
					return fmt.Errorf("%q is no number of an order", s)
				}
				requests = append(requests, thawRequest{ID: id, Action: action})
			}
			if err := p.byAdmin(cmd); err != nil {
				return err
			}
			return p.thaw(cmd, requests)
		},
	}
	c.Flags().StringVar(&node, "node", "", "all orders of this kind that concern the `node`")
	c.Flags().BoolVar(&all, "all", false, "all orders of this kind")
	return c
}

// thaw ends orders, each though another one could not be ended. It is well only if each
// held until now: whoever copies between a freeze and its thaw has no other word on it.
func (p *program) thaw(cmd *cobra.Command, requests []thawRequest) error {
	before, unknown := p.standing(cmd.Context())
	ended := []order{}
	var errs []error
	for _, r := range requests {
		b, err := p.ask(cmd.Context(), http.MethodPost, "/v1/orders/thaw", nil, r)
		var some orderList
		if err == nil {
			if err = json.Unmarshal(b, &some); err != nil {
				err = fmt.Errorf("%w from %s that lockctl understands: %w", errNoAnswer, p.where(), err)
			}
		}
		if err != nil {
			errs = append(errs, err)
		}
		for i := range some.Orders {
			o := &some.Orders[i]
			err := unknown
			if err == nil {
				err = o.lasted(before[o.ID], r.ID != 0)
			}
			switch {
			case err != nil:
				errs = append(errs, err)
			case !p.json:
				fmt.Fprintf(p.out, "Thawed: order %d on %s\n", o.ID, o.nodes())
			}
		}
		ended = append(ended, some.Orders...)
	}
	if p.json {
		if err := p.printJSON(orderList{ended}); err != nil {
			return err
		}
	}
	if len(errs) == 0 {
		if len(ended) == 0 {
			return fmt.Errorf("%w: no such order stands", errRefused)
		}
		return nil
	}
	// The exit status tells of a freeze that did not last before all else.
	last := max(0, slices.IndexFunc(errs, func(err error) bool { return errors.Is(err, errThawed) }))
	for _, err := range slices.Delete(slices.Clone(errs), last, last+1) {
		fmt.Fprintf(p.errs, "lockctl: %v\n", err)
	}
	return errs[last]
}

// standing gives the states of the orders that are not closed.
func (p *program) standing(ctx context.Context) (map[uint64]string, error) {
	b, err := p.get(ctx, "/v1/orders", nil)
	if err != nil {
		return nil, err
	}
	var l orderList
	if err := json.Unmarshal(b, &l); err != nil {
		return nil, fmt.Errorf("%w from %s that lockctl understands: %w", errNoAnswer, p.where(), err)
	}
	states := make(map[uint64]string, len(l.Orders))
	for _, o := range l.Orders {
		states[o.ID] = o.State
	}
	return states, nil
}

func (p *program) printJSON(v any) error {
	out := json.NewEncoder(p.out)
	out.SetIndent("", "  ")
	return out.Encode(v)
}

func (p *program) ordersCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "orders",
		Short: "List what is frozen on the nodes, and what was",
		Long: `orders lists the orders that stand, with each node's part in them. LEFT is the time until the
table thaws it whatever happens, - if that is never, or if the order is over; a node that froze
earlier than the last one may be that much ahead, as each counts for itself too.`,
		Example: `  lockctl orders
  lockctl orders --all --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := url.Values{}
			if all {
				q.Set("all", "1")
			}
			b, err := p.get(cmd.Context(), "/v1/orders", q)
			if err != nil {
				return err
			}
			return show(p, b, p.printOrders)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "also the last ones that are over")
	return c
}

func (p *program) printOrders(l orderList) {
	all := l.Orders
	if len(all) == 0 {
		fmt.Fprintln(p.out, "No order stands.")
		return
	}
	w := p.columns()
	fmt.Fprintln(w, "ORDER\tACTION\tSTATE\tBY\tLEFT\tNODE\tDOES\tWHAT\tTOOK\tREASON")
	for i := range all {
		o := &all[i]
		for j, n := range o.Nodes {
			head := "\t\t\t\t"
			reason := n.Cause
			if j == 0 {
				left := "-"
				if o.Left != nil {
					left = duration(*o.Left)
				}
				head = fmt.Sprintf("%d\t%s\t%s\t%s\t%s", o.ID, plain(o.Action), plain(o.State), plain(o.By), left)
				reason = cmp.Or(o.Why, o.Reason, n.Cause)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%v\t%s\n", head, plain(n.Node), plain(n.State), dash(n.Text),
				time.Duration(n.Took)*time.Millisecond, dash(reason))
		}
	}
	w.Flush()
}
