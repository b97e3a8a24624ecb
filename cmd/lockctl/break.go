package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"
)

func (p *program) breakCommand() *cobra.Command {
	var fence uint64
	var by string
	c := &cobra.Command{
		Use:   "break LOCK...",
		Short: "End whoever's hold of a lock",
		Long: `break ends whoever's hold of the named locks, and the next in their queues get
them. The job that held one goes on unless it watches for that; --fence makes sure
that nobody but the holder you have looked at loses it.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, locks []string) error {
			body := map[string]any{"locks": locks, "by": by}
			if cmd.Flags().Changed("fence") {
				if fence == 0 {
					return errors.New("--fence 0 is no hold's: fences count from 1")
				}
				body["fence"] = fence
			}
			b, err := p.ask(cmd.Context(), http.MethodPost, "/v1/break", nil, body)
			if err != nil {
				return err
			}
			var a broken
			if err := show(p, b, func(v broken) {
				if len(v.Locks) > 0 {
					fmt.Fprintf(p.out, "Broken: %s, held by %s\n", names(v.Locks), names(v.Owners))
				}
			}); err != nil {
				return err
			}
			if err := json.Unmarshal(b, &a); err == nil && len(a.Locks) == 0 {
				return fmt.Errorf("%w: nobody holds %s", errRefused, names(locks))
			}
			return nil
		},
	}
	c.Flags().Uint64Var(&fence, "fence", 0, "break the hold with this `number` alone")
	c.Flags().StringVar(&by, "by", self(), "`who` breaks it, for those concerned")
	return c
}

// broken is the node's answer.
type broken struct {
	Locks  []string `json:"locks"`
	Owners []string `json:"owners"`
}
