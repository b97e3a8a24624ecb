package pidprobe

import (
	"bytes"
	"strings"
	"testing"
)

func TestParseQuestion(t *testing.T) {
	const def = IfAlive | IfDead
	host255 := strings.Repeat("h", 255)
	for _, c := range []struct {
		text string
		pid  int32 // 0: no answer
		host string
		want Flags
	}{
		{"PIDR 1", 1, "", def},
		{"PIDR 12\n", 12, "", def},
		{"PIDR 12 \n", 12, "", def},
		{"PIDR\t12\thost\r\n", 12, "host", def},
		{"PIDR 12 host\nPIDR 13 other", 12, "host", def},
		{"PIDR 12 0", 12, "", def},
		{"PIDR 12 00", 12, "00", def},
		{"PIDR 12 0 4", 12, "", IfUnknown},
		{"PIDR 12 host 0", 12, "host", def},
		{"PIDR 12 host 1", 12, "host", IfAlive},
		{"PIDR 12 host 2 more words", 12, "host", IfDead},
		{"PIDR 12 host 7\n", 12, "host", AllAnswers},
		{"PIDR 12 host 15", 12, "host", AllAnswers},
		{"PIDR 12 host 8", 12, "host", 0},
		{"PIDR 12 host 1000000000000002", 12, "host", IfDead},
		{"PIDR 12 host x", 12, "host", 0},
		{"PIDR 12 host 2x", 12, "host", IfDead},
		{"PIDR 2147483647 h", 1<<31 - 1, "h", def},
		{"PIDR 0000000007 h", 7, "h", def},
		{"PIDR 12 " + host255, 12, host255, def},
		{"PIDR 12 \xff\x00\x01", 12, "\xff\x00\x01", def},

		{"", 0, "", 0},
		{"\n", 0, "", 0},
		{"PIDR", 0, "", 0},
		{"PIDR \n", 0, "", 0},
		{"PIDR\n12", 0, "", 0},
		{"PIDR abc", 0, "", 0},
		{"PIDR 12abc", 0, "", 0},
		{"PIDR 0", 0, "", 0},
		{"PIDR -1", 0, "", 0},
		{"PIDR +1", 0, "", 0},
		{"PIDR 1.5", 0, "", 0},
		{"PIDR 2147483648", 0, "", 0},
		{"PIDR 4294967297", 0, "", 0},
		{"PIDR 99999999999999999999", 0, "", 0},
		{"PIDR 12 " + host255 + "h", 0, "", 0},
		{" PIDR 12", 0, "", 0},
		{"\nPIDR 12", 0, "", 0},
		{"PIDR12", 0, "", 0},
		{"PIDRX 12", 0, "", 0},
		{"pidr 12", 0, "", 0},
		{"EXIS 12 1 host", 0, "", 0},
		{"UNKN 12 na host", 0, "", 0},
	} {
		q, ok := parseQuestion([]byte(c.text))
		if ok != (c.pid != 0) || q.pid != c.pid || string(q.host) != c.host || q.want != c.want {
			t.Errorf("%q: pid %d host %q flags %d, %v", c.text, q.pid, q.host, q.want, ok)
		}
	}
}

func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		v    Verdict
		text string
	}{
		{Alive, "EXIS 007 1 h.example"},
		{Dead, "EXIS 007 0 h.example"},
		{Unknown, "UNKN 007 na h.example"},
	} {
		if got := string(appendAnswer(nil, []byte("007"), c.v, []byte("h.example"))); got != c.text {
			t.Errorf("%v: %q, want %q", c.v, got, c.text)
		}
		pid, v, host, ok := parseAnswer([]byte(c.text))
		if pid != 7 || v != c.v || string(host) != "h.example" || !ok {
			t.Errorf("%q: %d %v %q %v", c.text, pid, v, host, ok)
		}
	}
	for _, bad := range []string{
		"", "EXIS", "EXIS 7", "EXIS 7 1", "EXIS 7 2 h", "EXIS 0 1 h", "EXIS x 1 h", "EXIS 99999999999 1 h", "PIDR 7 1 h", "exis 7 1 h",
	} {
		if _, v, _, ok := parseAnswer([]byte(bad)); ok || v != Unknown {
			t.Errorf("%q is taken for an answer: %v", bad, v)
		}
	}
}

func FuzzQuestion(f *testing.F) {
	f.Add([]byte("PIDR 12 host 3\n"))
	f.Add([]byte("PIDR abc"))
	f.Add([]byte("PIDR 99999999999999999999 0 0"))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, ok := parseQuestion(b)
		if !ok {
			return
		}
		if q.pid < 1 || len(q.host) > maxHost || q.want&^AllAnswers != 0 {
			t.Fatalf("%q: %+v", b, q)
		}
		host := q.host
		if len(host) == 0 {
			host = []byte("own")
		}
		for v := Unknown; v <= Dead; v++ {
			a := appendAnswer(nil, q.number, v, host)
			if len(a) > maxReply || len(a) > len(b)+len("own")+len("  na ") {
				t.Fatalf("%q makes us answer %q", b, a)
			}
			pid, got, name, ok := parseAnswer(a)
			if !ok || pid != q.pid || got != v || !bytes.Equal(name, host) {
				t.Fatalf("%q is answered %q, which reads %d %v %q %v", b, a, pid, got, name, ok)
			}
			if _, ok := parseQuestion(a); ok {
				t.Fatalf("the answer %q is a question", a)
			}
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte("EXIS 12 1 host"))
	f.Add([]byte("UNKN 12 na host"))
	f.Fuzz(func(t *testing.T, b []byte) {
		pid, v, host, ok := parseAnswer(b)
		if ok && (pid < 1 || len(host) == 0) || !ok && v != Unknown {
			t.Fatalf("%q: %d %v %q %v", b, pid, v, host, ok)
		}
	})
}
