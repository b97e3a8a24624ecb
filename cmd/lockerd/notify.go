package main

import (
	"fmt"
	"net"
	"strings"
)

// notify tells systemd about the state of the service (sd_notify(3)). Without a
// socket in $NOTIFY_SOCKET it does nothing.
func notify(socket, state string) error {
	if socket == "" {
		return nil
	}
	if !strings.HasPrefix(socket, "/") && !strings.HasPrefix(socket, "@") {
		return fmt.Errorf("$NOTIFY_SOCKET %q is neither a path nor an abstract socket", socket)
	}
	// package net writes the zero byte of abstract names (unix(7)) for the @.
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("tell systemd %s: %w", state, err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(state)); err != nil {
		return fmt.Errorf("tell systemd %s: %w", state, err)
	}
	return nil
}
