package netns

import (
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Delay holds every packet that the host sends or is sent for a time between least
// and most, until the host is healed. Packets stay in order, as on a long line, or
// overtake each other. What the observer has to do with is let through at once.
//
// The kernel at hand may have no netem, so the host's end of the cable is taken out
// of the bridge, and every frame is carried over by this process: between that end,
// through a packet socket, and another port of the bridge, a tap.
func (h *Host) Delay(least, most time.Duration, overtake bool) error {
	if h.relay != nil {
		return fmt.Errorf("delay %s: it is delayed already", h.IP)
	}
	r, err := newRelay(h.port, least, most, overtake)
	if err != nil {
		return fmt.Errorf("delay %s: %w", h.IP, err)
	}
	h.relay = r
	return nil
}

// Delayed counts the packets that were held so far, since Delay.
func (h *Host) Delayed() int {
	if h.relay == nil {
		return 0
	}
	n := 0
	for _, w := range h.relay.ways {
		n += w.count()
	}
	return n
}

// undelay ends Delay. Packets on their way are lost, as on a cable that is changed.
func (h *Host) undelay() error {
	if h.relay == nil {
		return nil
	}
	r := h.relay
	h.relay = nil
	r.close()
	return ip("link set " + h.port + " master jx0")
}

// relay carries frames both ways between a cable's end and the bridge.
type relay struct {
	cable, tap *os.File
	ways       [2]*way
	done       sync.WaitGroup
}

func newRelay(port string, least, most time.Duration, overtake bool) (*relay, error) {
	// The end of the cable belongs to nobody then, and this kernel is not to answer
	// for its own addresses there: 8 is never, see ip-sysctl.
	if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+port+"/arp_ignore", []byte("8"), 0o644); err != nil {
		return nil, err
	}
	name := port + "d"
	tap, err := openTap(name)
	if err != nil {
		return nil, err
	}
	cable, err := openCable(port)
	if err == nil {
		err = ip("link set "+port+" nomaster", "link set "+name+" master jx0", "link set "+name+" up")
	}
	if err != nil {
		_ = tap.Close()
		if cable != nil {
			_ = cable.Close()
		}
		return nil, errors.Join(err, ip("link set "+port+" master jx0"))
	}
	r := &relay{cable: cable, tap: tap}
	for i, ends := range [][2]*os.File{{cable, tap}, {tap, cable}} {
		w := &way{from: ends[0], to: ends[1], least: least, most: most, overtake: overtake, stop: make(chan struct{}), more: make(chan struct{}, 1)}
		r.ways[i] = w
		r.done.Go(w.read)
		r.done.Go(w.write)
	}
	return r, nil
}

func (r *relay) close() {
	for _, w := range r.ways {
		close(w.stop)
	}
	// This ends reads that wait; with the tap's descriptor the tap goes as well.
	_ = r.cable.Close()
	_ = r.tap.Close()
	r.done.Wait()
}

// Frames come and go with a header before them that says which of their checksums
// is still to be filled in, and how they are to be cut into packets: the kernel has
// left both to a device that there is none of. See virtio_net_hdr in
// linux/virtio_net.h.
const (
	frameHeader = 10 // bytes
	maxFrame    = frameHeader + 1<<16
	// maxHeld bounds the frames on their way in one direction; more are lost.
	maxHeld = 4096
)

// openTap makes a tap, an interface whose other end is a file; see
// Documentation/networking/tuntap.rst of Linux.
func openTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make a tap: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// openCable opens a packet socket on an interface; see packet(7).
func openCable(port string) (*os.File, error) {
	link, err := net.InterfaceByName(port)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open a packet socket: %w", err)
	}
	all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20),
		unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP,
			&unix.PacketMreq{Ifindex: int32(link.Index), Type: unix.PACKET_MR_PROMISC}),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}),
	)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("open a packet socket: %w", err)
	}
	return os.NewFile(uintptr(fd), port), nil
}

// way carries frames in one direction.
type way struct {
	from, to    *os.File
	least, most time.Duration
	overtake    bool
	stop        chan struct{}
	more        chan struct{} // something was added before what was first

	mu   sync.Mutex
	last time.Time // the latest time that a frame is due at
	n    uint64    // frames so far
	held int       // of them, those that had to wait
	rows frames
}

func (w *way) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.held
}

func (w *way) read() {
	buf := make([]byte, maxFrame)
	for {
		n, err := w.from.Read(buf)
		select {
		case <-w.stop:
			return
		default:
		}
		if err != nil {
			if errors.Is(err, os.ErrClosed) {
				return
			}
			continue // a link that goes down for a moment
		}
		if n > frameHeader {
			w.add(append([]byte(nil), buf[:n]...))
		}
	}
}

func (w *way) add(b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.rows) >= maxHeld {
		return
	}
	due := time.Now()
	if !ofObserver(b[frameHeader:]) {
		due = due.Add(w.least + time.Duration(rand.Int64N(int64(w.most-w.least)+1)))
		if !w.overtake && due.Before(w.last) {
			due = w.last
		}
		w.last = due
		w.held++
	}
	w.n++
	heap.Push(&w.rows, frame{due, w.n, b})
	if w.rows[0].n == w.n {
		select {
		case w.more <- struct{}{}:
		default:
		}
	}
}

func (w *way) write() {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-w.stop:
			return
		case <-w.more:
		case <-t.C:
		}
		for {
			b, after := w.due()
			if b == nil {
				t.Reset(after)
				break
			}
			_, _ = w.to.Write(b) // what cannot be sent is lost, as packets are
		}
	}
}

// due takes the first frame whose time has come, or says how long it is until then.
func (w *way) due() ([]byte, time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.rows) == 0 {
		return nil, time.Hour
	}
	if d := time.Until(w.rows[0].due); d > 0 {
		return nil, d
	}
	return heap.Pop(&w.rows).(frame).b, 0
}

var observerIP = netip.MustParseAddr(Observer).As4()

// ofObserver says whether an Ethernet frame is IPv4 from or to the observer: a type
// at byte 12, the addresses at bytes 12 and 16 of what follows.
func ofObserver(b []byte) bool {
	return len(b) >= 34 && binary.BigEndian.Uint16(b[12:]) == unix.ETH_P_IP &&
		([4]byte(b[26:]) == observerIP || [4]byte(b[30:]) == observerIP)
}

// frame is one on its way.
type frame struct {
	due time.Time
	n   uint64
	b   []byte
}

// frames is a heap by time and, of one time, by order.
type frames []frame

func (f frames) Len() int { return len(f) }
func (f frames) Less(i, j int) bool {
	if f[i].due.Equal(f[j].due) {
		return f[i].n < f[j].n
	}
	return f[i].due.Before(f[j].due)
}
func (f frames) Swap(i, j int) { f[i], f[j] = f[j], f[i] }
func (f *frames) Push(x any)   { *f = append(*f, x.(frame)) }

func (f *frames) Pop() any {
	old := *f
	x := old[len(old)-1]
	old[len(old)-1].b = nil
	*f = old[:len(old)-1]
	return x
}
