package cluster

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// sampleLog has every kind of field set and unset.
var sampleLog = []*raft.Log{
	{Index: 1, Term: 1, Type: raft.LogNoop},
	{Index: 2, Term: 3, Type: raft.LogCommand, Data: []byte("take amy's lock"), AppendedAt: time.Unix(1_900_000_000, 123_456_789)},
	{Index: 3, Term: 3, Type: raft.LogConfiguration, Data: bytes.Repeat([]byte{0, 1, 0xff}, 100), Extensions: []byte("more"), AppendedAt: time.Unix(1_900_000_001, 0)},
	{Index: 4, Term: 1 << 40, Type: raft.LogBarrier, AppendedAt: time.Unix(1_900_000_002, 5)},
}

// sampleDir makes the stores of a server whose log is sampleLog.
func sampleDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	s, closeStores, err := openStores(dir, "x", testLogger("x"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		s.Log.StoreLogs(sampleLog),
		s.Stable.SetUint64([]byte("CurrentTerm"), 1<<40),
		s.Stable.SetUint64([]byte("LastVoteTerm"), 1<<40),
		s.Stable.Set([]byte("LastVoteCand"), []byte("n3:7000")),
		closeStores(),
	); err != nil {
		t.Fatal(err)
	}
	return dir
}

// onDisk finds where a value of a bucket lies in a bbolt file: its page, and those
// that were it before.
func onDisk(t testing.TB, path, bucket string, key []byte) (size int, at []int) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	var val []byte
	err = errors.Join(db.View(func(tx *bbolt.Tx) error {
		val = bytes.Clone(tx.Bucket([]byte(bucket)).Get(key))
		return nil
	}), db.Close())
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for from := 0; len(val) > 0; {
		i := bytes.Index(file[from:], val)
		if i < 0 {
			break
		}
		at = append(at, from+i)
		from += i + 1
	}
	if len(at) == 0 {
		t.Fatalf("key %x of %s is not in %s", key, bucket, path)
	}
	return len(val), at
}

// flip changes the same bits of a byte at each of the places.
func flip(t testing.TB, f *os.File, at []int, offset int, bits byte) {
	t.Helper()
	for _, a := range at {
		var b [1]byte
		_, err := f.ReadAt(b[:], int64(a+offset))
		if err == nil {
			b[0] ^= bits
			_, err = f.WriteAt(b[:], int64(a+offset))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func sameLog(a, b *raft.Log) bool {
	return a.Index == b.Index && a.Term == b.Term && a.Type == b.Type && a.AppendedAt.Equal(b.AppendedAt) &&
		bytes.Equal(a.Data, b.Data) && bytes.Equal(a.Extensions, b.Extensions)
}

func TestEntriesComeBackAsTheyWere(t *testing.T) {
	s, closeStores, err := openStores(sampleDir(t), "x", testLogger("x"))
	if err != nil {
		t.Fatal(err)
	}
	l := raft.Log{Data: []byte("of an entry before"), Extensions: []byte("too")}
	for _, want := range sampleLog {
		if err := s.Log.GetLog(want.Index, &l); err != nil {
			t.Fatal(err)
		}
		if !sameLog(&l, want) {
			t.Errorf("entry %+v came back as %+v", want, l)
		}
	}
	if err := s.Log.GetLog(5, &l); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("entry 5: %v", err)
	}
	if v, err := s.Stable.GetUint64([]byte("CurrentTerm")); err != nil || v != 1<<40 {
		t.Errorf("term %d, %v", v, err)
	}
	if v, err := s.Stable.Get([]byte("LastVoteCand")); err != nil || string(v) != "n3:7000" {
		t.Errorf("vote %q, %v", v, err)
	}
	if _, err := s.Stable.Get([]byte("other")); !notFound(err) {
		t.Errorf("a key that was never set: %v", err)
	}
	if err := closeStores(); err != nil {
		t.Fatal(err)
	}
}

// errUnharmed is the answer of a value that is as it was stored: a flipped bit in the
// name of a field that is empty anyway does no harm.
var errUnharmed = errors.New("unharmed")

func readEntry(s *Stores, want *raft.Log) error {
	var l raft.Log
	if err := s.Log.GetLog(want.Index, &l); err != nil {
		return err
	}
	if !sameLog(&l, want) {
		return fmt.Errorf("another entry: %+v", l)
	}
	return errUnharmed
}

// TestEveryFlippedBitIsNoticed flips each bit of each stored entry and value in turn,
// under an open store.
func TestEveryFlippedBitIsNoticed(t *testing.T) {
	dir := sampleDir(t)
	path := filepath.Join(dir, logFile)
	type value struct {
		name string
		size int
		at   []int
		read func(*Stores) error
	}
	var values []value
	for _, l := range sampleLog {
		size, at := onDisk(t, path, boltLogs, binary.BigEndian.AppendUint64(nil, l.Index))
		values = append(values, value{fmt.Sprint("entry ", l.Index), size, at, func(s *Stores) error {
			return readEntry(s, l)
		}})
	}
	for _, key := range stableKeys {
		size, at := onDisk(t, path, boltStable, []byte(key))
		values = append(values, value{key, size, at, func(s *Stores) error {
			if _, err := s.Stable.Get([]byte(key)); err != nil {
				return err
			}
			return errUnharmed
		}})
	}
	s, closeStores, err := openStores(dir, "x", testLogger("x"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range values {
		unharmed := 0
		for i := range v.size {
			for bit := range 8 {
				flip(t, f, v.at, i, 1<<bit)
				err := v.read(s)
				if errors.Is(err, errUnharmed) && strings.HasPrefix(v.name, "entry ") {
					unharmed++
				} else if !strings.Contains(err.Error(), path+" is damaged") || !strings.Contains(err.Error(), v.name) || strings.Contains(err.Error(), "\n") {
					t.Errorf("%s, bit %d of byte %d: error %v", v.name, bit, i, err)
				}
				flip(t, f, v.at, i, 1<<bit)
			}
		}
		if err := v.read(s); !errors.Is(err, errUnharmed) {
			t.Errorf("%s, mended: %v", v.name, err)
		}
		// The names of the fields take up about half of a small entry.
		if unharmed > v.size*8/2 {
			t.Errorf("%s: %d of %d flips went unnoticed", v.name, unharmed, v.size*8)
		}
	}
	if err := errors.Join(f.Close(), closeStores()); err != nil {
		t.Fatal(err)
	}
}

// TestADamagedEntryIsRefusedAtStart changes each byte of an entry, its key and a term
// in turn, while no server has the file open.
func TestADamagedEntryIsRefusedAtStart(t *testing.T) {
	dir := sampleDir(t)
	path := filepath.Join(dir, logFile)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	each := func(name string, size int, at []int) {
		for i := range size {
			flip(t, f, at, i, 1<<(i%8))
			s, closeStores, err := openStores(dir, "x", testLogger("x"))
			if err == nil && strings.HasPrefix(name, "entry ") {
				// What is not refused is right.
				for _, l := range sampleLog {
					if err := readEntry(s, l); !errors.Is(err, errUnharmed) {
						t.Errorf("%s, byte %d: %v", name, i, err)
					}
				}
				_ = closeStores()
			} else if err == nil || strings.Count(err.Error(), "is damaged") != 1 || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s, byte %d: error %v", name, i, err)
			}
			flip(t, f, at, i, 1<<(i%8))
		}
	}
	for _, index := range []uint64{2, 4} {
		key := binary.BigEndian.AppendUint64(nil, index)
		size, at := onDisk(t, path, boltLogs, key)
		each(fmt.Sprint("entry ", index), size, at)
		for i := range at {
			at[i] -= len(key) // bbolt keeps a key right before its value
		}
		each(fmt.Sprint("key of entry ", index), len(key), at)
	}
	size, at := onDisk(t, path, boltStable, []byte("CurrentTerm"))
	each("term", size, at)
	for i := range at {
		at[i] -= len("CurrentTerm")
	}
	each("name of the term", len("CurrentTerm"), at)
	_, closeStores, err := openStores(dir, "x", testLogger("x"))
	if err != nil {
		t.Fatalf("mended: %v", err)
	}
	if err := closeStores(); err != nil {
		t.Fatal(err)
	}
}

// TestADamagedEntryEndsTheNode has Raft read an entry that has been damaged since the
// start. The call never returns, so the entry goes nowhere.
func TestADamagedEntryEndsTheNode(t *testing.T) {
	dir := sampleDir(t)
	path := filepath.Join(dir, logFile)
	_, at := onDisk(t, path, boltLogs, binary.BigEndian.AppendUint64(nil, 2))
	s, closeStores, err := openStores(dir, "x", testLogger("x"))
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	disk := newGuardedDisk(s, func(err error) { failed <- err })
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	flip(t, f, at, 20, 0x10)
	returned := make(chan error, 1)
	go func() { returned <- disk.GetLog(2, new(raft.Log)) }()
	select {
	case err := <-returned:
		t.Errorf("the entry was read: %v", err)
	case err := <-failed:
		if !errors.Is(err, ErrDisk) || !strings.Contains(err.Error(), path+" is damaged (entry 2: ") || strings.Contains(err.Error(), "\n") {
			t.Errorf("error %v", err)
		}
	}
	if err := errors.Join(f.Close(), closeStores()); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkStoreLogs compares what a batch costs with checksums and without, on a log
// that is not synced: a sync takes about a thousand times as long.
func BenchmarkStoreLogs(b *testing.B) {
	for _, size := range []int{100, 10_000} {
		for _, checked := range []bool{false, true} {
			b.Run(fmt.Sprintf("data=%d/checked=%v", size, checked), func(b *testing.B) {
				path := filepath.Join(b.TempDir(), logFile)
				bolt, err := raftboltdb.New(raftboltdb.Options{Path: path, NoSync: true, MsgpackUseNewTimeFormat: true})
				if err != nil {
					b.Fatal(err)
				}
				var log raft.LogStore = bolt
				if checked {
					log = &checkedStore{bolt, path}
				}
				batch := make([]*raft.Log, 16)
				index := uint64(0)
				for b.Loop() {
					for i := range batch {
						index++
						batch[i] = &raft.Log{Index: index, Term: 1, Data: make([]byte, size), AppendedAt: time.Unix(1_900_000_000, 0)}
					}
					if err := log.StoreLogs(batch); err != nil {
						b.Fatal(err)
					}
				}
				if err := bolt.Close(); err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}
