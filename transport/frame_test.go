package transport

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"testing"
)

func TestFrameRoundTrip(t *testing.T) {
	big := bytes.Repeat([]byte("lock"), 100_000)
	var b []byte
	b = AppendFrame(b, 1, nil)
	b = AppendFrame(b, 2, []byte("x"))
	b = AppendFrame(b, 255, big)
	r := bufio.NewReader(bytes.NewReader(b))
	var buf []byte
	for _, want := range []struct {
		kind    byte
		payload []byte
	}{{1, nil}, {2, []byte("x")}, {255, big}} {
		kind, payload, err := ReadFrame(r, buf, len(big))
		if err != nil || kind != want.kind || !bytes.Equal(payload, want.payload) {
			t.Fatalf("got kind %d, %d bytes, %v; want kind %d, %d bytes", kind, len(payload), err, want.kind, len(want.payload))
		}
		buf = payload
	}
	if _, _, err := ReadFrame(r, buf, 10); err != io.EOF {
		t.Fatalf("at the end: %v, want io.EOF", err)
	}
}

func TestFrameFaults(t *testing.T) {
	whole := AppendFrame(nil, 7, []byte("payload"))
	for n := 1; n < len(whole); n++ {
		_, _, err := ReadFrame(bufio.NewReader(bytes.NewReader(whole[:n])), nil, 100)
		if err != io.ErrUnexpectedEOF {
			t.Errorf("cut off after %d bytes: %v, want io.ErrUnexpectedEOF", n, err)
		}
	}
	if _, _, err := ReadFrame(bufio.NewReader(bytes.NewReader(whole)), nil, 6); !errors.Is(err, ErrFrameTooLarge) {
		t.Errorf("one byte too many: %v, want ErrFrameTooLarge", err)
	}
}

// A length alone must not cost memory.
func TestFrameLengthIsNotBelieved(t *testing.T) {
	claim := []byte{0x3f, 0xff, 0xff, 0xff, 1, 'x'}
	_, buf, err := ReadFrame(bufio.NewReader(bytes.NewReader(claim)), nil, 1<<30)
	if err != io.ErrUnexpectedEOF {
		t.Fatalf("err = %v, want io.ErrUnexpectedEOF", err)
	}
	if cap(buf) > 2*frameStep {
		t.Fatalf("%d bytes set aside for one that came", cap(buf))
	}
}

func TestFrameReusesBuffer(t *testing.T) {
	b := AppendFrame(nil, 1, make([]byte, 1000))
	src := bytes.NewReader(b)
	r := bufio.NewReader(src)
	buf := make([]byte, 0, 1000)
	if n := testing.AllocsPerRun(100, func() {
		src.Reset(b)
		r.Reset(src)
		if _, _, err := ReadFrame(r, buf, 1000); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Fatalf("%v allocations a frame, want none", n)
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add(AppendFrame(AppendFrame(nil, 1, []byte("abc")), 2, nil))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		const limit = 1 << 16
		r := bufio.NewReader(bytes.NewReader(in))
		var buf, again []byte
		for {
			kind, payload, err := ReadFrame(r, buf, limit)
			if err != nil {
				break
			}
			if len(payload) > limit {
				t.Fatalf("payload of %d bytes", len(payload))
			}
			again = AppendFrame(again, kind, payload)
			buf = payload
		}
		if !bytes.HasPrefix(in, again) {
			t.Fatalf("read %x from %x", again, in)
		}
	})
}
