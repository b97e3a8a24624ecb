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
		{"PIDR 12 host 23", 12, "host", AllAnswers},
		{"PIDR 12 host 16", 12, "host", 0},
		{"PIDR 12 host 8", 12, "host", tellEnd},
		{"PIDR 12 host 10\n", 12, "host", IfDead | tellEnd},
		{"PIDR 12 0 15", 12, "", AllAnswers | tellEnd},
		{"PIDR 12 host 1000000000000010", 12, "host", IfDead | tellEnd},
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
		if got := string(appendAnswer(nil, []byte("007"), c.v, []byte("h.example"), "")); got != c.text {
			t.Errorf("%v: %q, want %q", c.v, got, c.text)
		}
		a, ok := parseAnswer([]byte(c.text))
		if a.pid != 7 || a.verdict != c.v || string(a.host) != "h.example" || len(a.birth) > 0 || !ok {
			t.Errorf("%q: %+v %v", c.text, a, ok)
		}
	}
	for _, bad := range []string{
		"", "EXIS", "EXIS 7", "EXIS 7 1", "EXIS 7 2 h", "EXIS 0 1 h", "EXIS x 1 h", "EXIS 99999999999 1 h", "PIDR 7 1 h", "exis 7 1 h",
	} {
		if a, ok := parseAnswer([]byte(bad)); ok || a.verdict != Unknown {
			t.Errorf("%q is taken for an answer: %+v", bad, a)
		}
	}
}

// The forms of the extension, byte by byte.
func TestBirthOnTheWire(t *testing.T) {
	for birth, want := range map[string]string{
		"":                 "PIDR 12 h.example 10\n",
		"1195000.9f3c21aa": "PIDR 12 h.example 10 1195000.9f3c21aa\n",
	} {
		got := appendQuestion(nil, 12, "h.example", IfDead|tellEnd, []byte(birth))
		if string(got) != want {
			t.Errorf("%q, want %q", got, want)
		}
		q, ok := parseQuestion(got)
		if !ok || q.pid != 12 || string(q.host) != "h.example" || q.want != IfDead|tellEnd || string(q.birth) != birth {
			t.Errorf("%q: %+v, %v", got, q, ok)
		}
	}
	if q, _ := parseQuestion([]byte("PIDR 12 h 2 1195000.9f3c21aa")); q.birth != nil {
		t.Errorf("without the flag a birth %q", q.birth)
	}
	long := strings.Repeat("1", maxBirth)
	for text, want := range map[string]string{
		"EXIS 12 1 h 1195000.9f3c21aa":      "1195000.9f3c21aa",
		"EXIS 12 1 h 1195000.9f3c21aa more": "1195000.9f3c21aa",
		"EXIS 12 1 h " + long:               long,
		"EXIS 12 1 h " + long + "1":         "",
		"EXIS 12 1 h\n":                     "",
		"EXIS 12 0 h 1195000.9f3c21aa":      "",
		"UNKN 12 na h 1195000.9f3c21aa":     "",
	} {
		if a, ok := parseAnswer([]byte(text)); !ok || string(a.birth) != want {
			t.Errorf("%q: birth %q, %v", text, a.birth, ok)
		}
	}
}

func TestBirth(t *testing.T) {
	p := Process{PID: 12, Start: 1195000}
	birth := p.birth()
	if len(birth) != len("1195000.9f3c21aa") || !strings.HasPrefix(birth, "1195000.") {
		t.Fatalf("birth %q", birth)
	}
	place := birthplace()
	if longest := (Process{Start: 1<<64 - 1}).birth(); len(longest) != maxBirth {
		t.Errorf("%q has %d bytes, not %d", longest, len(longest), maxBirth)
	}
	if got := (Process{PID: 12}).birth(); got != "" {
		t.Errorf("without a start %q", got)
	}
	for text, want := range map[string]bool{
		birth:                          false,
		"1194999" + place:              true,
		"1195001" + place:              true,
		"1195001" + place + "0":        false,
		"1195001.00000000":             false, // elsewhere
		"1195001":                      false,
		place:                          false,
		"":                             false,
		"0" + place:                    false,
		"-1" + place:                   false,
		"+1" + place:                   false,
		"x1195001" + place:             false,
		"99999999999999999999" + place: false,
		"0001195000" + place:           false, // the same
	} {
		if got := p.bornAnew([]byte(text)); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
	if (Process{PID: 12}).bornAnew([]byte("1195001" + place)) {
		t.Error("a process whose start is not known is taken for another")
	}
}

func FuzzQuestion(f *testing.F) {
	f.Add([]byte("PIDR 12 host 3\n"))
	f.Add([]byte("PIDR abc"))
	f.Add([]byte("PIDR 99999999999999999999 0 0"))
	f.Add([]byte("PIDR 12 host 10 1195000.9f3c21aa\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, ok := parseQuestion(b)
		if !ok {
			return
		}
		if q.pid < 1 || len(q.host) > maxHost || q.want&^(AllAnswers|tellEnd) != 0 || len(q.birth) > 0 && q.want&tellEnd == 0 {
			t.Fatalf("%q: %+v", b, q)
		}
		p := Process{PID: q.pid, Start: 1195000}
		if p.bornAnew(q.birth) && (string(q.birth) == p.birth() || !bytes.HasSuffix(q.birth, []byte(birthplace()))) {
			t.Fatalf("%q is taken for another process than %s", q.birth, p.birth())
		}
		host := q.host
		if len(host) == 0 {
			host = []byte("own")
		}
		for v := Unknown; v <= Dead; v++ {
			birth := ""
			if v == Alive && q.want&tellEnd != 0 {
				birth = p.birth()
			}
			a := appendAnswer(nil, q.number, v, host, birth)
			if len(a) > maxReply || len(a) > len(b)+len("own")+len("  na ")+len(birth) {
				t.Fatalf("%q makes us answer %q", b, a)
			}
			got, ok := parseAnswer(a)
			if !ok || got.pid != q.pid || got.verdict != v || !bytes.Equal(got.host, host) || string(got.birth) != birth {
				t.Fatalf("%q is answered %q, which reads %+v %v", b, a, got, ok)
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
	f.Add([]byte("EXIS 12 1 host 1195000.9f3c21aa"))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := parseAnswer(b)
		if ok && (a.pid < 1 || len(a.host) == 0) || !ok && a.verdict != Unknown || len(a.birth) > maxBirth || len(a.birth) > 0 && a.verdict != Alive {
			t.Fatalf("%q: %+v %v", b, a, ok)
		}
	})
}
