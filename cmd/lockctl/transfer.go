package main

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"
)

func (p *program) transferCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "transfer [NODE]",
		Short: "Have another server lead",
		Long: `transfer has the leader hand over to the server NODE, which is a name, an id or the
address of a peer port as in lockctl status, or to the best one of the others. It is done
when the new leader is in office. Clients notice nothing but a short delay.`,
		Example: `  lockctl transfer
  lockctl transfer lock2`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			to := ""
			if len(args) > 0 {
				if to = args[0]; to == "" {
					return errors.New("the name of the server is empty")
				}
			}
			b, err := p.ask(cmd.Context(), http.MethodPost, "/v1/transfer", nil, map[string]any{"to": to})
			if err != nil {
				return err
			}
			return show(p, b, func(v newLeader) { fmt.Fprintf(p.out, "Leader: %s\n", plain(v.Leader)) })
		},
	}
}

// newLeader is the node's answer.
type newLeader struct {
	Leader string `json:"leader"`
}
