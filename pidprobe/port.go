package pidprobe

import (
	"context"
	"fmt"
	"net"
	"strconv"
)

// DefaultPort is that of pidstatd, unless /etc/services says otherwise.
const DefaultPort = 1752

// serviceName is pidstatd's in /etc/services.
const serviceName = "pidstatd"

// Port reads a port: a number, or the name of a UDP service (services(5)). Empty
// is the service pidstatd, or DefaultPort if there is none.
func Port(ctx context.Context, text string) (uint16, error) {
	name := text
	if name == "" {
		name = serviceName
	}
	if n, err := strconv.ParseUint(name, 10, 64); err == nil {
		if n < 1 || n > 65535 {
			return 0, fmt.Errorf("port %s: numbers go from 1 to 65535", text)
		}
		return uint16(n), nil
	}
	n, err := net.DefaultResolver.LookupPort(ctx, "udp", name)
	switch {
	case err == nil && n > 0:
		return uint16(n), nil
	case text == "":
		return DefaultPort, nil
	case ctx.Err() != nil:
		return 0, ctx.Err()
	}
	return 0, fmt.Errorf("port %q is neither a number nor a UDP service of /etc/services", text)
}
