package freezer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mount is a line of proc_pid_mountinfo(5).
type mount struct {
	id int
	// dev is the number of the file system, the same for all its mounts. That of
	// stat(2) is not: every subvolume of a btrfs has one of its own.
	dev           uint64
	point         string
	fstype        string
	source, super string // super are the options of the file system
}

// maxMounts bounds the text of a mountinfo: a hundred thousand mounts.
const maxMounts = 32 << 20

// readMounts lists the mounts that can be seen, in the order in which they were made.
func readMounts() ([]mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxMounts+1))
	if err == nil && len(text) > maxMounts {
		err = fmt.Errorf("more than %d bytes", maxMounts)
	}
	if err != nil {
		return nil, fmt.Errorf("read the mounts: %w", err)
	}
	return parseMounts(text)
}

func parseMounts(text []byte) (all []mount, err error) {
	for line := range bytes.Lines(text) {
		before, after, ok := strings.Cut(strings.TrimSuffix(string(line), "\n"), " - ")
		f, g := strings.Split(before, " "), strings.Split(after, " ")
		if !ok || len(f) < 6 || len(g) < 3 {
			return nil, fmt.Errorf("%.80q is no line of mountinfo", line)
		}
		m := mount{point: unescape(f[4]), fstype: g[0], source: unescape(g[1]), super: g[2]}
		major, minor, _ := strings.Cut(f[2], ":")
		var ma, mi uint64
		var errs [3]error
		m.id, errs[0] = strconv.Atoi(f[0])
		ma, errs[1] = strconv.ParseUint(major, 10, 32)
		mi, errs[2] = strconv.ParseUint(minor, 10, 32)
		if err := errors.Join(errs[:]...); err != nil {
			return nil, fmt.Errorf("%.80q is no line of mountinfo: %w", line, err)
		}
		m.dev = unix.Mkdev(uint32(ma), uint32(mi))
		all = append(all, m)
	}
	return all, nil
}

// option says whether the file system has an option.
func (m *mount) option(name string) bool {
	for o := range strings.SplitSeq(m.super, ",") {
		if o == name {
			return true
		}
	}
	return false
}

// describe is what a journal keeps of a file system beside its number, which another
// one may get later.
func (m *mount) describe() string { return m.fstype + " " + m.source }

// find returns the mount that a descriptor is on, and whether the descriptor is for its
// root (statx(2)). position counts the mounts that are older than the first one of the
// same file system.
func find(mounts []mount, fd int) (m *mount, position int, root bool, err error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return nil, 0, false, fmt.Errorf("find the mount: %w", err)
	}
	if st.Mask&unix.STATX_MNT_ID == 0 || st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return nil, 0, false, errors.New("find the mount: the kernel is older than 5.8")
	}
	for i := range mounts {
		if uint64(mounts[i].id) == st.Mnt_id {
			m = &mounts[i]
			break
		}
	}
	if m == nil { // in a chroot nothing but the number can be known of what is outside
		return &mount{dev: unix.Mkdev(st.Dev_major, st.Dev_minor)}, 0, false, nil
	}
	for position = range mounts {
		if mounts[position].dev == m.dev {
			break
		}
	}
	return m, position, st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// protectVariable lists directories in the environment whose file systems are never
// to be frozen, with colons between them.
const protectVariable = "FREEZER_PROTECT"

// vital are the directories that the system, and whoever is to thaw, cannot do
// without.
var vital = []string{"/", "/usr", "/var", "/run", "/tmp"}

// protectDepth is how deep file systems may be kept in one another.
const protectDepth = 8

// protected maps the numbers of file systems that must not be frozen to one of the
// directories for which they must not. By number, no bind mount gets around it.
func protected(mounts []mount, more []string) (map[uint64]string, error) {
	named := filepath.SplitList(os.Getenv(protectVariable))
	for _, dir := range named {
		if !filepath.IsAbs(dir) {
			return nil, fmt.Errorf("%w: %s: %q is no absolute path", ErrOrder, protectVariable, dir)
		}
	}
	dirs := slices.Concat(vital, named, more)
	swaps, err := os.ReadFile("/proc/swaps")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for line := range strings.Lines(string(swaps)) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == "file" {
			dirs = append(dirs, unescape(f[0]))
		}
	}
	set := map[uint64]string{}
	for _, dir := range dirs {
		if err := protect(set, mounts, dir, dir, protectDepth); err != nil {
			return nil, fmt.Errorf("protect %s: %w", OneLine(dir), err)
		}
	}
	if err := protectServers(set, mounts); err != nil {
		return nil, fmt.Errorf("protect the files of lockerd: %w", err)
	}
	return set, nil
}

// protect adds the file system that a path is on, or would be when it is made, and
// those that this one is kept in.
func protect(set map[uint64]string, mounts []mount, path, why string, depth int) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("%w: %q is no absolute path", ErrOrder, path)
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	for err == unix.ENOENT || err == unix.ENOTDIR {
		path = filepath.Dir(path)
		fd, err = unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	m, _, _, err := find(mounts, fd)
	if err != nil {
		return err
	}
	return protectMount(set, mounts, m, fd, why, depth)
}

// protectMount adds the file system of a mount, and those that it is kept in. fd is for
// something in it.
func protectMount(set map[uint64]string, mounts []mount, m *mount, fd int, why string, depth int) error {
	if _, known := set[m.dev]; !known {
		set[m.dev] = why
	}
	if depth == 0 {
		return nil
	}
	if m.fstype == "overlay" {
		return protectUpper(set, mounts, m, fd, why, depth)
	}
	image, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/loop/backing_file", unix.Major(m.dev), unix.Minor(m.dev)))
	if inside := strings.TrimSuffix(string(image), "\n"); err == nil && filepath.IsAbs(inside) {
		return protect(set, mounts, inside, why, depth-1)
	}
	return nil
}

// protectUpper adds the file system that an overlay writes to. Its lower ones it only reads,
// which goes on. The name of the upper directory may be one of another mount namespace, or
// of a working directory that nobody knows; but the overlay has the size of its upper file
// system (statfs(2)), and so whatever has the same size counts if the name is of no use.
func protectUpper(set map[uint64]string, mounts []mount, m *mount, fd int, why string, depth int) error {
	upper := ""
	for o := range strings.SplitSeq(m.super, ",") {
		if u, ok := strings.CutPrefix(o, "upperdir="); ok {
			upper = unescape(u)
		}
	}
	var whole, part unix.Statfs_t
	if upper == "" {
		return nil
	}
	if err := unix.Fstatfs(fd, &whole); err != nil {
		return fmt.Errorf("look at the overlay at %s: %w", OneLine(m.point), err)
	}
	same := func() bool { return part.Blocks == whole.Blocks && part.Bsize == whole.Bsize }
	if filepath.IsAbs(upper) && unix.Statfs(upper, &part) == nil && same() {
		return protect(set, mounts, upper, why, depth-1)
	}
	for i := range mounts {
		on := &mounts[i]
		if _, known := set[on.dev]; known || strings.HasPrefix(on.fstype, "fuse") || !onDevice(on.fstype) {
			continue
		}
		if unix.Statfs(on.point, &part) == nil && same() {
			if err := protectMount(set, mounts, on, -1, why, depth-1); err != nil {
				return err
			}
		}
	}
	return nil
}
