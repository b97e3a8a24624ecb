package pidprobe

import (
	"net"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// batchSize is how many datagrams are received or sent with one system call.
const batchSize = 64

// datagram is room for one datagram and where it came from, or goes to.
type datagram struct {
	data [maxDatagram]byte
	// peer is a sockaddr_in or sockaddr_in6.
	peer unix.RawSockaddrInet6
	// control tells to which of our addresses it was sent (ip(7), IP_PKTINFO). The
	// answer goes out from that one, or a host with several would seem to be another.
	control [8]uint64
}

// mmsghdr is the kernel's struct of that name (recvmmsg(2)).
type mmsghdr struct {
	unix.Msghdr
	n uint32 // bytes received or sent
}

// batch receives datagrams and sends answers many at a time, without allocating.
//
// Answers of one length to one asker that follow each other leave as one message,
// which the kernel cuts up at the last moment (udp(7), UDP_SEGMENT): that is half
// the time of sending them one by one.
type batch struct {
	conn    syscall.RawConn
	headers [batchSize]mmsghdr
	vectors [batchSize]unix.Iovec // of all headers, in order
	grams   [batchSize]datagram

	// What is to be sent: messages in headers, answers in vectors. Of the last
	// message, first is the datagram that it answers, size the length of its parts,
	// control that of its control messages.
	messages, answers    int
	first, size, control int
	segments             bool // the kernel can cut

	// The functions that conn calls, made once, and what passes between.
	recv, send func(fd uintptr) bool
	n, from    int
	errno      syscall.Errno
}

func newBatch(conn *net.UDPConn) (*batch, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	b := &batch{conn: raw}
	err = raw.Control(func(fd uintptr) {
		_, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT)
		b.segments = err == nil
	})
	if err != nil {
		return nil, err
	}
	b.recv = func(fd uintptr) bool { return b.call(unix.SYS_RECVMMSG, fd) }
	b.send = func(fd uintptr) bool { return b.call(unix.SYS_SENDMMSG, fd) }
	return b, nil
}

// call does one system call over the headers from b.from up to b.n. False is to
// wait until there is something to receive or room to send.
func (b *batch) call(trap, fd uintptr) bool {
	for {
		n, _, errno := syscall.Syscall6(trap, fd, uintptr(unsafe.Pointer(&b.headers[b.from])), uintptr(b.n-b.from), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			b.n, b.errno = int(n), 0
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			b.n, b.errno = 0, errno
			return true
		}
	}
}

// receive waits for datagrams and returns how many there are.
func (b *batch) receive() (int, error) {
	for i := range b.headers {
		d := &b.grams[i]
		b.vectors[i].Base = &d.data[0]
		b.vectors[i].SetLen(len(d.data))
		h := &b.headers[i].Msghdr
		h.Name = (*byte)(unsafe.Pointer(&d.peer))
		h.Namelen = unix.SizeofSockaddrInet6
		h.Iov = &b.vectors[i]
		h.Iovlen = 1
		h.Control = (*byte)(unsafe.Pointer(&d.control[0]))
		h.SetControllen(8 * len(d.control))
		h.Flags = 0
	}
	b.messages, b.answers = 0, 0
	b.from, b.n = 0, batchSize
	if err := b.conn.Read(b.recv); err != nil {
		return 0, err
	}
	switch b.errno {
	case 0, unix.ENOMEM, unix.ENOBUFS: // these pass
		return b.n, nil
	}
	return 0, b.errno
}

// question is the text of a datagram received. No is for one that was cut off.
func (b *batch) question(i int) ([]byte, bool) {
	return b.grams[i].data[:b.headers[i].n], b.headers[i].Flags&unix.MSG_TRUNC == 0
}

// source is where a datagram came from.
func (b *batch) source(i int) (key sourceKey) {
	peer := &b.grams[i].peer
	if peer.Family == unix.AF_INET {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(peer))
		copy(key[4:], v4.Addr[:])
		return key
	}
	if a := &peer.Addr; [12]byte(a[:12]) == v4InV6 {
		copy(key[4:], a[12:])
	} else {
		copy(key[:], a[:8])
	}
	return key
}

var v4InV6 = [12]byte{10: 0xff, 11: 0xff}

// answer adds an answer to datagram i to what is to be sent. Answers are given in
// the order of the datagrams, so that theirs are the headers before.
func (b *batch) answer(i int, text []byte) {
	v := &b.vectors[b.answers]
	v.Base = &text[0]
	v.SetLen(len(text))
	b.answers++
	b.keepAddress(i)
	if b.messages > 0 && b.segments && len(text) == b.size && b.sameAsker(i) {
		h := &b.headers[b.messages-1].Msghdr
		h.Iovlen++
		if h.Iovlen == 2 {
			b.cut(h)
		}
		return
	}
	h := &b.headers[b.messages].Msghdr
	*h = b.headers[i].Msghdr
	h.Iov, h.Iovlen, h.Flags = v, 1, 0
	b.messages++
	b.first, b.size, b.control = i, len(text), int(h.Controllen)
}

// sameAsker says whether datagram i came from where the last message goes, to the
// same address of ours.
func (b *batch) sameAsker(i int) bool {
	d, first := &b.grams[i], &b.grams[b.first]
	n := b.control / 8
	return d.peer == first.peer && int(b.headers[i].Controllen) == b.control &&
		slices.Equal(d.control[:n], first.control[:n])
}

// cut asks the kernel to cut up the last message.
func (b *batch) cut(h *unix.Msghdr) {
	control := &b.grams[b.first].control
	at := b.control / 8
	c := (*unix.Cmsghdr)(unsafe.Pointer(&control[at]))
	c.Level, c.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	c.SetLen(unix.CmsgLen(2))
	*(*uint16)(unsafe.Pointer(&control[at+unix.CmsgLen(0)/8])) = uint16(b.size)
	h.Control = (*byte)(unsafe.Pointer(&control[0]))
	h.SetControllen(b.control + unix.CmsgSpace(2))
}

// keepAddress makes the control message of datagram i one for sending: from the
// address to which it came, by whatever interface leads back. Only link-local
// addresses need theirs.
func (b *batch) keepAddress(i int) {
	h := &b.headers[i].Msghdr
	d := &b.grams[i]
	c := (*unix.Cmsghdr)(unsafe.Pointer(&d.control[0]))
	data := unsafe.Pointer(&d.control[unix.CmsgLen(0)/8])
	switch {
	case int(h.Controllen) >= unix.CmsgLen(unix.SizeofInet6Pktinfo) && c.Level == unix.IPPROTO_IPV6 && c.Type == unix.IPV6_PKTINFO:
		info := (*unix.Inet6Pktinfo)(data)
		if info.Addr[0] != 0xfe || info.Addr[1]&0xc0 != 0x80 {
			info.Ifindex = 0
		}
	case int(h.Controllen) >= unix.CmsgLen(unix.SizeofInet4Pktinfo) && c.Level == unix.IPPROTO_IP && c.Type == unix.IP_PKTINFO:
		info := (*unix.Inet4Pktinfo)(data)
		info.Ifindex = 0
	default:
		h.Control = nil
		h.SetControllen(0)
	}
}

// transmit sends all messages, and returns how many answers went out. Those that
// cannot be sent, because a route or a permission is missing, are lost, as
// datagrams may be. The error is that of a closed socket.
func (b *batch) transmit() (sent int, err error) {
	for b.from = 0; b.from < b.messages; {
		b.n = b.messages
		if err := b.conn.Write(b.send); err != nil {
			return sent, err
		}
		if b.errno != 0 {
			if b.headers[b.from].Iovlen > 1 && (b.errno == unix.EIO || b.errno == unix.EINVAL) {
				b.segments = false // not on this way; they will be asked for again
			}
			b.from++
			continue
		}
		for ; b.n > 0; b.n-- {
			sent += int(b.headers[b.from].Iovlen)
			b.from++
		}
	}
	return sent, nil
}

// wantAddresses asks the kernel for the control messages that keepAddress needs. A
// socket that is bound to one address goes without, and answers a little more.
func wantAddresses(conn *net.UDPConn) error {
	if !conn.LocalAddr().(*net.UDPAddr).IP.IsUnspecified() {
		return nil
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		domain, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		switch {
		case err != nil:
			failed = err
		case domain == unix.AF_INET6:
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		default:
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		}
	})
	if err != nil {
		return err
	}
	return failed
}
