package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"
)

func (p *program) removeCommand() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "remove NODE",
		Short: "Take a server out of the cluster for good",
		Long: `remove takes the server NODE, which is a name, an id or the address of a peer port as
in lockctl status, out of the cluster. It may be dead. If it leads, it hands over first.
A server that runs ends by itself when it hears of it, and never starts with that data
again; with its data wiped it joins as a new one. Holds and queues stay as they are.

It is refused if the servers that would be left are not in touch: without a majority
of them nothing is granted or released.`,
		Example: `  lockctl remove lock3
  lockctl remove 6f0c2e9d41b85a7730c19e52d4f8ab60   # of two that are called lock3`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "" {
				return errors.New("the name of the server is empty")
			}
			body := map[string]any{"node": args[0]}
			if force {
				body["force"] = true
			}
			b, err := p.ask(cmd.Context(), http.MethodPost, "/v1/remove", nil, body)
			if err != nil {
				return err
			}
			return show(p, b, func(v removed) {
				fmt.Fprintf(p.out, "Removed: %s (%s), id %s\n", plain(cmp.Or(v.Name, v.ID)), plain(v.Addr), plain(v.ID))
			})
		},
	}
	c.Flags().BoolVar(&force, "force", false, "even if too few of the others are in touch; they will be back")
	return c
}

// removed is the node's answer.
type removed struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Addr string `json:"addr"`
}
