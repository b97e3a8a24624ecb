package main

import (
	"context"
	"io"
)

func cmdServe(ctx context.Context, args []string, out io.Writer) (int, error) { return 70, nil }
