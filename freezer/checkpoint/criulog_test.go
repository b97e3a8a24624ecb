package checkpoint

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// What CRIU's log means.
func TestLog(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		log   string
		class Class
		errno syscall.Errno
		say   string
	}{
		{"(00.0417) pie: 29314: Error (criu/pie/restorer.c:2185): Unable to create a thread: -17\n(00.0428) Error (criu/cr-restore.c:2331): Restoring FAILED.\n", Temp, syscall.EBUSY, "one of its threads is in use"},
		{"(00.01) 12: Error (criu/cr-restore.c:1): Can't fork for 12: File exists\n", Temp, syscall.EBUSY, "CRIU: Can't fork for 12: File exists"},
		{"(00.01) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n(00.02) Error (criu/files-reg.c:1): Can't open file x: No such file or directory\n", Env, syscall.ENOENT, "open /x: No such file or directory"},
		{"(00.01) Error (criu/files-reg.c:1): Can't open file tmp/a b on restore: Permission denied\n", Env, syscall.EACCES, "open /tmp/a b: Permission denied"},
		{"(00.01) Error (criu/files-reg.c:1): File tmp/a b has bad size 5 (expect 3)\n", Env, syscall.ESTALE, "/tmp/a b has 5 bytes, and had 3 when it was checkpointed"},
		{"(00.01) Error (criu/files-reg.c:1): File a has bad mode 0100644 (expect 0100600)\n", Env, syscall.ESTALE, "/a has the mode 0100644, and had 0100600 when it was checkpointed"},
		{"(00.01) Error (criu/files-reg.c:1): File bin/a has bad build-ID length 8 (expect 20)\n", Env, syscall.ESTALE, "/bin/a is not the program or library that it was when it was checkpointed (its build-ID is another)"},
		{"(00.01) Error (criu/page-xfer.c:1): page-xfer: Unable to spice data: Disk quota exceeded\n", Env, syscall.EDQUOT, "Disk quota exceeded"},
		{"(00.01) Warn  (criu/a.c:1): odd\n(00.01) Error (criu/a.c:2): something else\n", Perm, syscall.EINVAL, "something else"},
		{"", Perm, syscall.EINVAL, "did not say why"},
	} {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, []byte(c.log), 0o600); err != nil {
			t.Fatal(err)
		}
		log := readLog(path)
		e := log.judge()
		if e.Class != c.class || e.Errno != c.errno || !strings.HasSuffix(e.Error(), c.say) {
			t.Errorf("%q: class %v, errno %v, %q", c.log, e.Class, e.Errno, e)
		}
	}
}
