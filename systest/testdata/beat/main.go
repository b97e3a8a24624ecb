// Beat is a process that says for as long as it lives that it does, and one that
// looks whether any of these live.
//
//	beat alive FILE LIFE [bare]   lives for so long, unless it is killed: writes the
//	                              time to FILE every millisecond, and keeps it locked;
//	                              bare closes all that it has inherited
//	beat next DIR TIME            prints when it began and which of the files in DIR
//	                              are locked then, and stays for so long
//
// Times are those of CLOCK_BOOTTIME, in nanoseconds.
package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	began := now()
	long, err := time.ParseDuration(os.Args[3])
	if err == nil {
		switch os.Args[1] {
		case "alive":
			err = alive(os.Args[2], began+int64(long), len(os.Args) > 4)
		case "next":
			err = next(os.Args[2], began)
			time.Sleep(long)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "beat:", err)
		os.Exit(1)
	}
}

func now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

func alive(path string, until int64, bare bool) error {
	signal.Ignore(syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT)
	if bare {
		if err := closeAll(); err != nil {
			return err
		}
	}
	// Another name until it is locked.
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	var stamp [8]byte
	for at := int64(0); at < until; {
		at = now()
		binary.NativeEndian.PutUint64(stamp[:], uint64(at))
		if _, err := f.WriteAt(stamp[:], 0); err != nil {
			return err
		}
		if path != "" {
			if err := os.Rename(path+".new", path); err != nil {
				return err
			}
			path = ""
		}
		time.Sleep(time.Millisecond)
	}
	// The kernel may close what we have inherited before it does this.
	return unix.Flock(int(f.Fd()), unix.LOCK_UN)
}

// closeAll closes what was inherited, and nothing that the runtime has opened.
func closeAll() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return err
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			_ = unix.Close(fd)
		}
	}
	return nil
}

func next(dir string, began int64) error {
	fmt.Println("began", began)
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return err
	}
	for _, path := range files {
		f, err := os.Open(path)
		if err != nil {
			continue // it has been renamed just now, and is seen by what it writes
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == unix.EWOULDBLOCK {
			fmt.Println("alive", filepath.Base(path))
		}
		_ = f.Close()
	}
	return nil
}
