package checkpoint

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Format is the version of the context files that are written. Older ones can be read.
const Format = 1

// Manifest describes a context file.
type Manifest struct {
	Format    int        `json:"format"`
	ID        string     `json:"id,omitempty"` // random: no other file has it but a copy; "" in the first ones
	Created   time.Time  `json:"created"`
	Host      string     `json:"host"`
	Boot      string     `json:"boot"` // of the kernel (random(4))
	Kernel    string     `json:"kernel"`
	Machine   string     `json:"machine"` // as uname(2) has it
	Features  []string   `json:"cpu_features"`
	CRIU      string     `json:"criu"`
	Target    string     `json:"target"`
	Root      int        `json:"root"` // the eldest process
	Processes []Process  `json:"processes"`
	Terminals []Terminal `json:"terminals,omitempty"`
	Files     []File     `json:"files,omitempty"`
	TCP       string     `json:"tcp,omitempty"`
	Locks     []Lock     `json:"locks,omitempty"`
	Suspended bool       `json:"suspended,omitempty"` // the locks are kept for the file
	Asker     *Asker     `json:"asker,omitempty"`
	Parts     []Part     `json:"parts"`
}

// Process is one of those checkpointed.
type Process struct {
	PID     int    `json:"pid"`
	Parent  int    `json:"parent"`
	Group   int    `json:"group"`
	Session int    `json:"session"`
	Start   uint64 `json:"start"`             // clock ticks since boot; 0 if it ended too soon to know
	Threads []int  `json:"threads,omitempty"` // beside the first
	Command string `json:"command"`
	Stopped bool   `json:"stopped,omitempty"`
	Ended   bool   `json:"ended,omitempty"` // and its parent has not looked yet
}

// Terminal is one that a process had open and that is not of the checkpoint itself: a
// restart puts its own in the place.
type Terminal struct {
	Session int `json:"session"` // 0 if it controls none
	Group   int `json:"group"`   // in the foreground
	Index   int `json:"index"`   // N of /dev/pts/N
}

// File is one that is not in the context file, only its name.
type File struct {
	Path     string    `json:"path"`
	Size     uint64    `json:"size"`
	Modified time.Time `json:"modified,omitzero"` // soon after the checkpoint; zero if it has gone meanwhile
	Written  bool      `json:"written,omitempty"` // open for writing
}

// Lock is a lock of the cluster that the job held; whoever asks for the checkpoint
// knows them, and whoever restarts it gets them back.
type Lock struct {
	Name  string `json:"name"`
	Owner string `json:"owner,omitempty"`
	Mode  string `json:"mode,omitempty"`
	Fence uint64 `json:"fence,omitempty"`
}

// Part is a member of the file.
type Part struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
	Sum  string `json:"crc32c"` // eight hexadecimal digits
}

// size is that of all parts, in bytes.
func (m *Manifest) size() (n uint64) {
	for _, p := range m.Parts {
		n += min(uint64(p.Size), math.MaxUint64-n) // none is below 0
	}
	return n
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// The first member: a line with its own sum, and then JSON.
const (
	manifestName = "MANIFEST"
	manifestLine = "lockerd context %d crc32c %08x\n"
	maxManifest  = 64 << 20
)

func (m *Manifest) encode() ([]byte, error) {
	body, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return nil, err
	}
	return append(fmt.Appendf(nil, manifestLine, Format, crc32.Checksum(body, castagnoli)), body...), nil
}

func decodeManifest(text []byte) (*Manifest, error) {
	line, body, _ := bytes.Cut(text, []byte("\n"))
	var format int
	var sum uint32
	if n, _ := fmt.Sscanf(string(line)+"\n", manifestLine, &format, &sum); n != 2 {
		return nil, damaged(manifestName, "it does not begin as one")
	}
	if format > Format {
		return nil, fail(Perm, syscall.EINVAL, "the context file has format %d, and %d is the latest that is known here", format, Format)
	}
	if crc32.Checksum(body, castagnoli) != sum || string(line)+"\n" != fmt.Sprintf(manifestLine, format, sum) {
		return nil, damaged(manifestName, "its checksum is another")
	}
	m := &Manifest{}
	if err := json.Unmarshal(body, m); err != nil {
		return nil, damaged(manifestName, err.Error())
	}
	return m, m.check()
}

// check is for files that were made up, not damaged.
func (m *Manifest) check() error {
	seen := map[string]bool{manifestName: true}
	for _, p := range m.Parts {
		if !partName(p.Name) || seen[p.Name] || p.Size < 0 {
			return damaged(manifestName, fmt.Sprintf("it has a part %.40q", p.Name))
		}
		seen[p.Name] = true
	}
	if len(m.Processes) == 0 || !slices.ContainsFunc(m.Processes, func(p Process) bool { return p.PID == m.Root }) {
		return damaged(manifestName, "it has no eldest process")
	}
	for _, p := range m.Processes {
		if p.PID <= 0 || p.Group < 0 || p.Session < 0 {
			return damaged(manifestName, fmt.Sprintf("it has a process %d", p.PID))
		}
	}
	return nil
}

// partName keeps a member inside of its directory.
func partName(name string) bool {
	if name == "" || name[0] == '.' || len(name) > 255 {
		return false
	}
	return strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == ""
}

func damaged(part, why string) *Error {
	return fail(Perm, syscall.EINVAL, "%w: %s: %s", ErrDamaged, part, why)
}

// fits says why the file cannot be restarted on this host.
func (m *Manifest) fits() error {
	here := Manifest{}
	here.describeHost()
	if m.Machine != here.Machine {
		return fail(Perm, syscall.EINVAL, "it was checkpointed on a machine of kind %s, and this is %s", m.Machine, here.Machine)
	}
	for _, f := range m.Features {
		if !slices.Contains(here.Features, f) {
			return fail(Perm, syscall.EINVAL, "this host's processor lacks %s, which that of %s had", f, m.Host)
		}
	}
	return nil
}

// Boot returns the boot id of the kernel, as in Manifest.Boot.
func Boot() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("find out under which boot this is: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

// describeHost fills in where we are.
func (m *Manifest) describeHost() {
	m.Host, _ = os.Hostname()
	m.Boot, _ = Boot()
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		m.Kernel = unix.ByteSliceToString(name.Release[:])
		m.Machine = unix.ByteSliceToString(name.Machine[:])
	}
	m.Features = cpuFeatures()
}

// instructions are the beginnings of those words in /proc/cpuinfo that stand for
// instructions a program may have found and go on to use. Other words are the
// kernel's own, and come and go with its version.
var instructions = []string{
	"sse", "ssse", "avx", "amx", "aes", "vaes", "pclmulqdq", "vpclmulqdq", "fma", "f16c", "bmi", "abm", "adx", "sha", "gfni",
	"movbe", "popcnt", "xsave", "rdrand", "rdseed", "erms", "fsrm", "cx16", "rtm", "clflushopt", "clwb", "movdir", "lahf_lm",
}

func cpuFeatures() (features []string) {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		key = strings.TrimSpace(key)
		if key != "flags" && key != "Features" {
			continue
		}
		for word := range strings.FieldsSeq(value) {
			if runtime.GOARCH != "amd64" || slices.ContainsFunc(instructions, func(i string) bool { return strings.HasPrefix(word, i) }) {
				features = append(features, word)
			}
		}
		break
	}
	slices.Sort(features)
	return features
}
