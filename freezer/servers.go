package freezer

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// serverName is what lock servers are called (proc_pid_comm(5)).
const serverName = "lockerd"

// protectServers adds the file systems that lock servers of this host write to, wherever
// their data directories are, and whoever has started them.
func protectServers(set map[uint64]string, mounts []mount) error {
	proc, err := openProc()
	if err != nil {
		return err
	}
	defer proc.close()
	var servers []int32
	if err := proc.list(func(pids []int32) {
		for _, pid := range pids {
			if proc.name(pid) == serverName {
				servers = append(servers, pid)
			}
		}
	}); err != nil {
		return err
	}
	for _, pid := range servers {
		if err := proc.protectFiles(set, mounts, pid); err != nil && !vanished(err) && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("process %d: %w", pid, err)
		}
	}
	return nil
}

// protectFiles adds the file systems of the files that a process may write to. It looks at
// the descriptors alone, and opens none of the files: what is frozen, or does not answer,
// cannot hold it up.
func (p *procfs) protectFiles(set map[uint64]string, mounts []mount, pid int32) error {
	dir := "/proc/" + strconv.Itoa(int(pid))
	text, err := p.whole(strconv.Itoa(int(pid))+"/mountinfo", maxMounts)
	if errors.Is(err, unix.EINVAL) {
		return nil // it has no mount namespace any more, and has closed its files before that
	}
	if err != nil {
		return err
	}
	theirs, err := parseMounts(text) // it may be in another mount namespace
	if err != nil {
		return err
	}
	names, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return err
	}
	for _, n := range names {
		name, err := os.Readlink(dir + "/fd/" + n.Name())
		if err != nil || !strings.HasPrefix(name, "/") {
			continue
		}
		info, err := os.ReadFile(dir + "/fdinfo/" + n.Name())
		if err != nil {
			continue
		}
		flags, mnt, ok := parseFDInfo(string(info))
		if !ok || flags&unix.O_ACCMODE == unix.O_RDONLY {
			continue
		}
		for i := range theirs {
			if theirs[i].id != mnt {
				continue
			}
			fd, err := unix.Open(dir+"/fd/"+n.Name(), unix.O_PATH|unix.O_CLOEXEC, 0)
			if err != nil {
				break // it has been closed
			}
			why := fmt.Sprintf("%s of lockerd (process %d)", name, pid)
			err = protectMount(set, mounts, &theirs[i], fd, why, protectDepth)
			_ = unix.Close(fd)
			if err != nil {
				return err
			}
			break
		}
	}
	return nil
}

// parseFDInfo reads the flags and the mount from proc_pid_fdinfo(5).
func parseFDInfo(text string) (flags uint64, mnt int, ok bool) {
	mnt = -1
	var err error
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		switch name {
		case "flags":
			flags, err = strconv.ParseUint(value, 8, 64)
			ok = err == nil
		case "mnt_id":
			if mnt, err = strconv.Atoi(value); err != nil {
				return 0, -1, false
			}
		}
	}
	return flags, mnt, ok && mnt >= 0
}
