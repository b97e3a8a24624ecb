package checkpoint

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	criucore "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/stats"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// States of a task in CRIU's images (include/pstree.h of CRIU).
const (
	taskDead    = 2
	taskStopped = 3
)

// describe makes a manifest, without parts, of the images in a directory. The processes
// that were found before the checkpoint tell what the images do not.
func describe(dir string, before []process) (*Manifest, error) {
	m := &Manifest{Format: Format, ID: rand.Text(), Created: time.Now().Truncate(time.Millisecond)}
	m.describeHost()
	for _, look := range []func(string) error{
		func(dir string) error { return m.describeProcesses(dir, before) },
		m.describeTerminals,
		m.describeFiles,
	} {
		if err := look(dir); err != nil {
			return nil, err
		}
	}
	if len(m.Processes) == 0 {
		return nil, fmt.Errorf("%s: %w: it has no process", filepath.Join(dir, "pstree.img"), errImage)
	}
	m.Root = m.Processes[0].PID
	return m, nil
}

func (m *Manifest) describeProcesses(dir string, before []process) error {
	err := readImage(filepath.Join(dir, "pstree.img"), func() proto.Message { return &pstree.PstreeEntry{} },
		func(msg proto.Message) error {
			e := msg.(*pstree.PstreeEntry)
			p := Process{
				PID: int(e.GetPid()), Parent: int(e.GetPpid()), Group: int(e.GetPgid()), Session: int(e.GetSid()),
			}
			for _, t := range e.GetThreads() {
				if t != e.GetPid() {
					p.Threads = append(p.Threads, int(t))
				}
			}
			i := slices.IndexFunc(before, func(b process) bool { return b.pid == p.PID })
			if i >= 0 {
				p.Start = before[i].start
			} else if now, err := readProcess(p.PID); err == nil { // it was born meanwhile
				p.Start = now.start
			}
			m.Processes = append(m.Processes, p)
			return nil
		})
	if err != nil {
		return err
	}
	for i := range m.Processes {
		p := &m.Processes[i]
		err := readImage(filepath.Join(dir, fmt.Sprintf("core-%d.img", p.PID)), func() proto.Message { return &criucore.CoreEntry{} },
			func(msg proto.Message) error {
				tc := msg.(*criucore.CoreEntry).GetTc()
				p.Command = tc.GetComm()
				p.Stopped = tc.GetTaskState() == taskStopped
				p.Ended = tc.GetTaskState() == taskDead
				return nil
			})
		if err != nil {
			return err
		}
	}
	return nil
}

// describeTerminals lists the terminals whose other end is not in the images.
func (m *Manifest) describeTerminals(dir string) error {
	inside := map[uint32]bool{} // by index
	masters, slaves := map[uint32]bool{}, map[uint32]bool{}
	paths := map[uint32]string{} // of entries by id
	type open struct{ info, file uint32 }
	var opens []open
	err := readFiles(dir, func(e *fdinfo.FileEntry) error {
		if r := e.GetReg(); r != nil {
			paths[e.GetId()] = r.GetName()
		}
		if t := e.GetTty(); t != nil {
			opens = append(opens, open{t.GetTtyInfoId(), t.GetRegfId()})
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, o := range opens {
		if strings.HasSuffix(paths[o.file], "ptmx") {
			masters[o.info] = true
		} else {
			slaves[o.info] = true
		}
	}
	infos := map[uint32]*tty.TtyInfoEntry{}
	err = readImage(filepath.Join(dir, "tty-info.img"), func() proto.Message { return &tty.TtyInfoEntry{} },
		func(msg proto.Message) error {
			e := msg.(*tty.TtyInfoEntry)
			infos[e.GetId()] = e
			if masters[e.GetId()] {
				inside[e.GetPty().GetIndex()] = true
			}
			return nil
		})
	if err != nil {
		return err
	}
	for id, e := range infos {
		if e.GetType() == tty.TtyType_PTY && slaves[id] && !inside[e.GetPty().GetIndex()] {
			t := Terminal{Session: int(e.GetSid()), Group: int(e.GetPgrp()), Index: int(e.GetPty().GetIndex())}
			if !slices.Contains(m.Terminals, t) {
				m.Terminals = append(m.Terminals, t)
			}
		}
	}
	slices.SortFunc(m.Terminals, func(a, b Terminal) int { return a.Index - b.Index })
	return nil
}

func (m *Manifest) describeFiles(dir string) error {
	found := map[string]*File{}
	err := readFiles(dir, func(e *fdinfo.FileEntry) error {
		r := e.GetReg()
		if r == nil || r.GetExt() || !filepath.IsAbs(r.GetName()) {
			return nil
		}
		f := found[r.GetName()]
		if f == nil {
			f = &File{Path: r.GetName(), Size: r.GetSize()}
			found[f.Path] = f
			var st unix.Stat_t
			if unix.Stat(f.Path, &st) == nil {
				f.Modified = time.Unix(st.Mtim.Unix()).UTC()
				switch {
				case st.Mode&unix.S_IFMT != unix.S_IFREG:
					f.Size = 0
				case r.Size == nil: // one that is only appended to
					f.Size = uint64(st.Size)
				}
			}
		}
		f.Written = f.Written || r.GetFlags()&unix.O_ACCMODE != unix.O_RDONLY
		return nil
	})
	for _, f := range found {
		m.Files = append(m.Files, *f)
	}
	slices.SortFunc(m.Files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return err
}

func readFiles(dir string, each func(*fdinfo.FileEntry) error) error {
	return readImage(filepath.Join(dir, "files.img"), func() proto.Message { return &fdinfo.FileEntry{} },
		func(m proto.Message) error { return each(m.(*fdinfo.FileEntry)) })
}

// readPause is how long the processes stood still, by CRIU's own clock; 0 if it did not
// say.
func readPause(dir string) (pause time.Duration) {
	_ = readImage(filepath.Join(dir, "stats-dump"), func() proto.Message { return &stats.StatsEntry{} },
		func(m proto.Message) error {
			d := m.(*stats.StatsEntry).GetDump()
			pause = time.Duration(d.GetFreezingTime()+d.GetFrozenTime()) * time.Microsecond
			return nil
		})
	return pause
}

// images lists the files in a directory of CRIU that a restart needs.
func images(dir string) (names []string, err error) {
	all, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		if e.Type().IsRegular() && strings.HasSuffix(e.Name(), ".img") {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
