package freezer

import (
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Who has to thaw needs more than to run: what it writes, as its log, must not wait for
// what is frozen.

// openForWriting lists files that this process may write to, one of each file system.
func openForWriting() (paths []string) {
	seen := map[uint64]bool{} // one of each file system will do
	eachOwnFile(func(fd int, st *unix.Stat_t, name string) {
		if st.Mode&unix.S_IFMT == unix.S_IFREG && strings.HasPrefix(name, "/") && !seen[st.Dev] && writable(fd) {
			seen[st.Dev] = true
			paths = append(paths, name)
		}
	})
	return paths
}

// readers lists the processes that read what this one writes to its standard output and
// error output, if these are pipes or UNIX sockets, as that of the journal of systemd.
func (p *procfs) readers() (pids []int, err error) {
	ends := map[string]bool{}
	eachOwnFile(func(fd int, st *unix.Stat_t, name string) {
		switch {
		case fd > 2 || !writable(fd):
		case st.Mode&unix.S_IFMT == unix.S_IFIFO:
			ends[name] = true
		case st.Mode&unix.S_IFMT == unix.S_IFSOCK:
			// Where the kernel does not tell, nobody can be spared for it.
			if peer, err := socketPeer(uint32(st.Ino)); err == nil {
				ends[fmt.Sprintf("socket:[%d]", peer)] = true
			}
		}
	})
	if len(ends) == 0 {
		return nil, nil
	}
	err = p.list(func(all []int32) {
		for _, pid := range all {
			if int(pid) != os.Getpid() && p.reads(pid, ends) {
				pids = append(pids, int(pid))
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("find the readers of our output: %w", err)
	}
	return pids, nil
}

// socketPeer returns the inode of the socket that one of the UNIX sockets is connected
// to (sock_diag(7)).
func socketPeer(inode uint32) (uint32, error) {
	const (
		showPeer   = 4  // UDIAG_SHOW_PEER
		peer       = 2  // UNIX_DIAG_PEER
		sizeofDiag = 16 // struct unix_diag_msg
	)
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	order := binary.NativeEndian
	var ask []byte
	ask = order.AppendUint32(ask, unix.SizeofNlMsghdr+24)
	ask = order.AppendUint16(ask, unix.SOCK_DIAG_BY_FAMILY)
	ask = order.AppendUint16(ask, unix.NLM_F_REQUEST)
	ask = append(ask, make([]byte, 8)...) // sequence and port
	ask = append(ask, unix.AF_UNIX, 0, 0, 0)
	for _, word := range []uint32{^uint32(0), inode, showPeer, ^uint32(0), ^uint32(0)} { // any state, any cookie
		ask = order.AppendUint32(ask, word)
	}
	if err := unix.Sendto(fd, ask, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, err
	}
	buf := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, buf, 0) // the kernel has answered before Sendto returned
	if err != nil {
		return 0, err
	}
	if n < unix.SizeofNlMsghdr+sizeofDiag || order.Uint16(buf[4:]) != unix.SOCK_DIAG_BY_FAMILY {
		return 0, unix.ENOENT
	}
	for at := buf[unix.SizeofNlMsghdr+sizeofDiag : n]; len(at) >= unix.SizeofNlAttr; {
		size := int(order.Uint16(at))
		if size < unix.SizeofNlAttr || size > len(at) {
			break
		}
		if order.Uint16(at[2:]) == peer && size >= unix.SizeofNlAttr+4 {
			return order.Uint32(at[unix.SizeofNlAttr:]), nil
		}
		at = at[min((size+3)&^3, len(at)):]
	}
	return 0, unix.ENOTCONN
}

// reads says whether a process has a pipe open for reading, or a socket, of some that are
// named as by /proc/PID/fd (proc_pid_fd(5)).
func (p *procfs) reads(pid int32, ends map[string]bool) bool {
	dir := "/proc/" + strconv.Itoa(int(pid))
	names, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return false // it has ended
	}
	return slices.ContainsFunc(names, func(n os.DirEntry) bool {
		name, err := os.Readlink(dir + "/fd/" + n.Name())
		if err != nil || !ends[name] {
			return false
		}
		// proc_pid_fdinfo(5): flags are octal.
		text, err := os.ReadFile(dir + "/fdinfo/" + n.Name())
		if err != nil {
			return false
		}
		for line := range strings.Lines(string(text)) {
			if octal, ok := strings.CutPrefix(line, "flags:"); ok {
				flags, err := strconv.ParseUint(strings.TrimSpace(octal), 8, 64)
				return err == nil && flags&unix.O_ACCMODE != unix.O_WRONLY
			}
		}
		return false
	})
}

// lineage adds to processes all that they descend from.
func (p *procfs) lineage(pids []int) (all []int) {
	known := map[int32]bool{}
	for _, pid := range pids {
		for at := int32(pid); at > 1 && !known[at]; {
			st, err := p.stat(at)
			if err != nil {
				break
			}
			known[at] = true
			all = append(all, int(at))
			at = st.parent
		}
	}
	return all
}

func eachOwnFile(each func(fd int, st *unix.Stat_t, name string)) {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, n := range names {
		fd, err := strconv.Atoi(n.Name())
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil {
			continue // ReadDir's own
		}
		if name, err := os.Readlink("/proc/self/fd/" + n.Name()); err == nil {
			each(fd, &st, name)
		}
	}
}

func writable(fd int) bool {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_ACCMODE != unix.O_RDONLY
}
