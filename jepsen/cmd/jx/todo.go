package main

import (
	"context"
	"io"
)

func cmdCI(ctx context.Context, args []string, out io.Writer) (int, error)    { return 70, nil }
func cmdAll(ctx context.Context, args []string, out io.Writer) (int, error)   { return 70, nil }
func cmdSoak(ctx context.Context, args []string, out io.Writer) (int, error)  { return 70, nil }
func cmdServe(ctx context.Context, args []string, out io.Writer) (int, error) { return 70, nil }
