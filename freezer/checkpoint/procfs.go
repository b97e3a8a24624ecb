package checkpoint

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// process is what proc_pid_stat(5) tells.
type process struct {
	pid, parent, group, session int
	terminal                    int
	state                       byte
	start                       uint64 // clock ticks since boot
}

// lives is false for who has ended, and for none.
func (p process) lives() bool { return p.pid != 0 && p.state != 'Z' && p.state != 'X' }

var errStat = errors.New("not the text of proc_pid_stat(5)")

// parseStat reads the fields 1, 3 to 7 and 22.
func parseStat(text []byte) (p process, err error) {
	end := bytes.LastIndexByte(text, ')') // the name may have blanks and parentheses
	if end < 0 {
		return p, errStat
	}
	first, _, _ := bytes.Cut(text, []byte(" "))
	rest := bytes.Fields(text[end+1:])
	if len(rest) < 20 || len(rest[0]) != 1 {
		return p, errStat
	}
	p.state = rest[0][0]
	for _, f := range []struct {
		to   *int
		text []byte
	}{{&p.pid, first}, {&p.parent, rest[1]}, {&p.group, rest[2]}, {&p.session, rest[3]}, {&p.terminal, rest[4]}} {
		if *f.to, err = strconv.Atoi(string(f.text)); err != nil {
			return p, errStat
		}
	}
	if p.start, err = strconv.ParseUint(string(rest[19]), 10, 64); err != nil {
		return p, errStat
	}
	return p, nil
}

func readProcess(pid int) (process, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return process{}, err
	}
	return parseStat(text)
}

// table is the process table by number.
type table map[int]process

func readTable() (table, error) {
	if self, err := os.Readlink("/proc/self"); err != nil || self != strconv.Itoa(os.Getpid()) {
		return nil, errors.New("/proc does not show our pid namespace: mount one of our own there")
	}
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("read /proc: %w", err)
	}
	t := table{}
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			if p, err := readProcess(pid); err == nil {
				t[pid] = p
			}
		}
	}
	return t, nil
}

// below says whether a process descends from another, or is it.
func (t table) below(pid, ancestor int) bool {
	for range len(t) {
		if pid == ancestor {
			return true
		}
		p, ok := t[pid]
		if !ok {
			return false
		}
		pid = p.parent
	}
	return false
}

// statusNumber reads a number of proc_pid_status(5); 0 if it is not there.
func statusNumber(pid int, field string) int {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), "\n"+field+":\t")
	word, _, _ := strings.Cut(rest, "\n")
	n, _ := strconv.Atoi(strings.TrimSpace(word))
	return n
}

// Processes lists a process and its descendants, each after its parent.
func Processes(root int) (pids []int, err error) {
	all, err := readTable()
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for pid, p := range all {
		children[p.parent] = append(children[p.parent], pid)
	}
	if _, ok := all[root]; ok {
		pids = []int{root}
	}
	for i := 0; i < len(pids); i++ {
		slices.Sort(children[pids[i]])
		pids = append(pids, children[pids[i]]...)
	}
	return pids, nil
}
