package cluster

import (
	"errors"
	"net"
	"sync"
	"time"

	"github.com/lockerd/lockerd/transport"
)

const (
	// maxOutbox bounds what may wait to be written to one peer. A peer that is
	// that far behind is cut off and starts afresh.
	maxOutbox = 64 << 20

	// outboxKeep is the largest buffer kept for the next write.
	outboxKeep = 256 << 10

	peerWriteTimeout = 10 * time.Second
)

// outbox writes frames to a peer without making anyone wait: whoever has a frame
// leaves it here, and whatever has gathered goes out in one write.
type outbox struct {
	conn net.Conn

	mu     sync.Mutex
	buf    []byte
	spare  []byte
	closed bool
	wake   chan struct{}
}

func newOutbox(conn net.Conn) *outbox {
	return &outbox{conn: conn, wake: make(chan struct{}, 1)}
}

// send leaves a frame. To a closed outbox it does nothing: who sends learns of
// the loss by the missing answer.
func (o *outbox) send(kind byte, payload []byte) {
	o.mu.Lock()
	if !o.closed {
		o.buf = transport.AppendFrame(o.buf, kind, payload)
	}
	over := len(o.buf) > maxOutbox
	o.mu.Unlock()
	if over {
		_ = o.conn.Close() // the reader sees it and cleans up
		return
	}
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// run writes until the outbox is closed or the connection fails.
func (o *outbox) run() {
	for range o.wake {
		o.mu.Lock()
		out := o.buf
		o.buf, o.spare = o.spare[:0], nil
		closed := o.closed
		o.mu.Unlock()
		if len(out) > 0 {
			err := o.conn.SetWriteDeadline(time.Now().Add(peerWriteTimeout))
			if err == nil {
				_, err = o.conn.Write(out)
			}
			if err != nil {
				_ = o.conn.Close()
				o.close()
			}
		}
		if closed {
			return
		}
		if cap(out) <= outboxKeep {
			o.mu.Lock()
			o.spare = out[:0]
			o.mu.Unlock()
		}
	}
}

// close ends run after what is left here has been written.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.closed {
		o.closed = true
		select {
		case o.wake <- struct{}{}:
		default:
		}
	}
}

// errLinkDown is returned for a request to a peer whose connection ended first.
var errLinkDown = errors.New("connection to the other node lost")
