package main

import (
	"bufio"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
)

// TestCtrlCWhileWaiting wants the request withdrawn, and lockersh dead of SIGINT:
// that is 130 to a shell, and ends a loop or a script of it as well.
func TestCtrlCWhileWaiting(t *testing.T) {
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	lockersh := filepath.Join(dir, "lockersh") // by this name, TestMain is the command
	if err := os.Symlink(self, lockersh); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", filepath.Join(dir, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	said := make(chan string, 100)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		for s := bufio.NewScanner(c); s.Scan(); {
			switch s.Text() {
			case "LOCK":
				_, _ = io.WriteString(c, "proto 2 fake\nprint_waiting other\n")
			case "CANCEL":
				_, _ = io.WriteString(c, "owner \nlocked 0\nerror cancelled\n\n\n")
			}
			said <- s.Text()
		}
		close(said)
	}()

	cmd := exec.Command(lockersh, "--path", ln.Addr().String(), "--verbose", "--lock", "x", "touch", filepath.Join(dir, "ran"))
	f, err := pty.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	timer := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	line, err := bufio.NewReader(f).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "Waiting for lock from other at ") {
		t.Fatalf("%q, %v", line, err)
	}
	if _, err := f.Write([]byte{3}); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if s := cmd.ProcessState.Sys().(syscall.WaitStatus); !s.Signaled() || s.Signal() != syscall.SIGINT {
		t.Errorf("lockersh ended with %v", cmd.ProcessState)
	}
	cancelled := false
	for s := range said {
		cancelled = cancelled || s == "CANCEL"
	}
	if !cancelled {
		t.Error("the request was not withdrawn")
	}
	if _, err := os.Stat(filepath.Join(dir, "ran")); err == nil {
		t.Error("the command has run")
	}
}
