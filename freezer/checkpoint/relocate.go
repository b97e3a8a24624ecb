package checkpoint

import (
	"path/filepath"
	"strings"
	"syscall"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// MaxRelocations is how many there may be, as in cr_restart(1).
const MaxRelocations = 16

// Relocation gives files and directories of a checkpoint other names. Old is the
// beginning of a canonical path, of whole components.
type Relocation struct{ Old, New string }

// ParseRelocation reads OLDPATH=NEWPATH, where \= and \\ stand for = and \.
func ParseRelocation(text string) (r Relocation, err error) {
	var parts [2]strings.Builder
	at := 0
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == '\\' && i+1 < len(text) && (text[i+1] == '=' || text[i+1] == '\\'):
			i++
			parts[at].WriteByte(text[i])
		case text[i] == '=' && at == 1:
			return r, fail(Args, syscall.EINVAL, "the relocation %q has two = (one within a path is written \\=)", text)
		case text[i] == '=':
			at = 1
		default:
			parts[at].WriteByte(text[i])
		}
	}
	r = Relocation{parts[0].String(), parts[1].String()}
	if at == 0 || r.New == "" {
		return r, fail(Args, syscall.EINVAL, "the relocation %q is not OLDPATH=NEWPATH", text)
	}
	if !filepath.IsAbs(r.Old) || filepath.Clean(r.Old) != r.Old && r.Old != filepath.Clean(r.Old)+"/" {
		return r, fail(Args, syscall.EINVAL, "the old path of the relocation %q is not canonical", text)
	}
	return r, nil
}

// relocate gives the first relocation that matches a path.
func relocate(path string, all []Relocation) string {
	for _, r := range all {
		old := strings.TrimSuffix(r.Old, "/")
		if path == old || strings.HasPrefix(path, old+"/") {
			return filepath.Clean(r.New + path[len(old):])
		}
	}
	return path
}

// canonical makes the new paths absolute, and follows their links as far as they exist.
func canonical(all []Relocation) ([]Relocation, error) {
	out := make([]Relocation, len(all))
	for i, r := range all {
		path, err := filepath.Abs(r.New)
		if err != nil {
			return nil, classed(err, "find our directory")
		}
		if real, err := filepath.EvalSymlinks(path); err == nil {
			path = real
		}
		out[i] = Relocation{r.Old, path}
	}
	return out, nil
}

// anyMount has CRIU look for the mount by the path.
const anyMount = -1

// editFiles changes what the images know of files: the names by the relocations, and
// the sizes of files open for writing, which CRIU would insist on and which have
// often changed since.
func editFiles(dir string, all []Relocation) error {
	return editImage(filepath.Join(dir, "files.img"), func() proto.Message { return &fdinfo.FileEntry{} },
		func(m proto.Message) (changed bool, err error) {
			e := m.(*fdinfo.FileEntry)
			if r := e.GetReg(); r != nil {
				if r.GetFlags()&unix.O_ACCMODE != unix.O_RDONLY && r.Size != nil {
					r.Size, changed = nil, true
				}
				if name := relocate(r.GetName(), all); name != r.GetName() {
					r.Name, r.MntId, changed = proto.String(name), proto.Int32(anyMount), true
				}
			}
			if u := e.GetUsk(); u != nil {
				if name := string(u.GetName()); strings.HasPrefix(name, "/") {
					path, end := strings.CutSuffix(name, "\x00")
					if moved := relocate(path, all); moved != path {
						if end {
							moved += "\x00"
						}
						u.Name, u.MntId, changed = []byte(moved), proto.Int32(anyMount), true
					}
				}
				if moved := relocate(u.GetNameDir(), all); moved != u.GetNameDir() {
					u.NameDir, changed = proto.String(moved), true
				}
			}
			return changed, nil
		})
}
