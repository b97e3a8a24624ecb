package pidprobe

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// birthOf is what the server has to say of a child.
func birthOf(c *child) string {
	c.t.Helper()
	b := c.lookup().birth()
	if b == "" {
		c.t.Fatal("it has no birth")
	}
	return b
}

// subscribed says how many subscriptions there are, and how many processes the
// watcher watches for them.
func subscribed(s *Server) (subs, watched int) {
	s.subs.mu.Lock()
	defer s.subs.mu.Unlock()
	if s.subs.watcher != nil {
		watched, _ = s.subs.watcher.Len()
	}
	return len(s.subs.byAsker), watched
}

// wantTable checks that nothing is left behind in any of the tables.
func wantTable(t *testing.T, s *Server, subs, watched int) {
	t.Helper()
	if n, w := subscribed(s); n != subs || w != watched {
		t.Errorf("%d subscriptions, %d processes watched; want %d and %d", n, w, subs, watched)
	}
	s.subs.mu.Lock()
	defer s.subs.mu.Unlock()
	var byProcess, bySource int
	for _, subs := range s.subs.byProcess {
		byProcess += len(subs)
	}
	for _, n := range s.subs.bySource {
		bySource += n
	}
	if byProcess != subs || bySource != subs || len(s.subs.byProcess) != watched {
		t.Errorf("%d by process of %d, %d by source; want %d of %d", byProcess, len(s.subs.byProcess), bySource, subs, watched)
	}
}

// What goes over the wire, byte by byte, on each of the ways that a datagram can take.
func TestPush(t *testing.T) {
	for listen, hosts := range listened {
		s := serve(t, listen, ServerConfig{})
		for _, host := range hosts {
			conn := dialServer(t, s, host) // takes nothing from another address of the server
			c := start(t, "cat")
			pid, birth := fmt.Sprint(c.pid()), birthOf(c)
			expect := func(ask, want string) {
				t.Helper()
				if ask != "" {
					tell(t, conn, ask)
				}
				if got := hear(t, conn); got != want {
					t.Errorf("%s: %q is answered %q, want %q", host, ask, got, want)
				}
			}
			promise := "EXIS " + pid + " 1 there " + birth
			expect("PIDR "+pid+" there 10\n", promise)
			expect("PIDR "+pid+" there 10 "+birth+"\n", promise)
			expect("PIDR "+pid+" there 10\n", promise) // as if the promise was lost
			expect("PIDR "+pid+" there 15 "+birth, promise)
			expect("PIDR 0"+pid+" 0 10", "EXIS 0"+pid+" 1 own.example "+birth)
			expect("PIDR "+pid+" there 1", "EXIS "+pid+" 1 there")
			wantTable(t, s, 2, 1)
			c.zombie()
			got := map[string]bool{hear(t, conn): true}
			got[hear(t, conn)] = true
			if !got["UNKN 0"+pid+" na own.example"] || !got["UNKN "+pid+" na there"] {
				t.Errorf("%s: pushed %v", host, got)
			}
			// Once each, whoever asked how often.
			expect("PIDR "+pid+" there 10 "+birth+"\n", "EXIS "+pid+" 0 there")
			expect("PIDR "+pid+" there 10\n", "EXIS "+pid+" 0 there")
			wantTable(t, s, 0, 0)
			if t.Failed() {
				return
			}
		}
		eventually(t, "the count of the last push", func() bool { return s.Stats().Pushed == uint64(2*len(hosts)) })
	}
}

// The other flags mean what they always mean.
func TestPromise(t *testing.T) {
	s := serve(t, "127.0.0.1", ServerConfig{Workers: 1})
	c := start(t, "cat")
	live, birth := fmt.Sprint(c.pid()), birthOf(c)
	place := birthplace()
	const free = "2147483647"
	conn := dialServer(t, s, "127.0.0.1")
	promise := "EXIS " + live + " 1 h " + birth
	for _, x := range []struct{ ask, want string }{
		{"PIDR " + live + " h 2", ""},
		{"PIDR " + live + " h 2 " + birth, ""},
		{"PIDR " + live + " h 8", promise},
		{"PIDR " + live + " h 9", promise},
		{"PIDR " + live + " h 26", promise},
		{"PIDR " + free + " h 8", ""},
		{"PIDR " + free + " h 10", "EXIS " + free + " 0 h"},
		{"PIDR " + free + " h 10 " + birth, "EXIS " + free + " 0 h"},
		// A later one has the number.
		{"PIDR " + live + " h 10 1" + place, "EXIS " + live + " 0 h"},
		{"PIDR " + live + " h 9 1" + place, ""},
		// Of these nothing follows.
		{"PIDR " + live + " h 10 1.00000000", promise},
		{"PIDR " + live + " h 10 garbage", promise},
		{"PIDR " + live + " h 10 " + strings.Repeat("1", 300), promise},
		{"PIDR " + live + " h 10 \x00\xff", promise},
		{"PIDR 1 end", "EXIS 1 1 end"},
	} {
		tell(t, conn, x.ask)
		if x.want == "" {
			continue
		}
		if got := hear(t, conn); got != x.want {
			t.Errorf("%.60q is answered %q, want %q", x.ask, got, x.want)
		}
	}
}

func TestSubscriptionExpires(t *testing.T) {
	s := serve(t, "127.0.0.1", ServerConfig{})
	conn, other := dialServer(t, s, "127.0.0.1"), dialServer(t, s, "127.0.0.1")
	c, d := start(t, "cat"), start(t, "cat")
	for _, x := range []*child{c, d} {
		tell(t, conn, fmt.Sprintf("PIDR %d h 8", x.pid()))
		hear(t, conn)
	}
	tell(t, other, fmt.Sprintf("PIDR %d h 8", c.pid()))
	hear(t, other)
	wantTable(t, s, 3, 2)
	// Time passes; one of them is renewed.
	s.subs.mu.Lock()
	for _, sub := range s.subs.byAsker {
		sub.renewed -= subscriptionTime + time.Second
	}
	s.subs.mu.Unlock()
	tell(t, other, fmt.Sprintf("PIDR %d h 8 %s", c.pid(), birthOf(c)))
	hear(t, other)
	eventually(t, "the end of the others", func() bool { n, _ := subscribed(s); return n == 1 })
	wantTable(t, s, 1, 1)
	c.zombie()
	d.zombie()
	if got, want := hear(t, other), fmt.Sprintf("UNKN %d na h", c.pid()); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	tell(t, conn, "PIDR 1 h") // nothing comes before its answer
	if got := hear(t, conn); got != "EXIS 1 1 h" {
		t.Errorf("%q", got)
	}
	wantTable(t, s, 0, 0)
}

// ask9 asks with an answer in any case, and returns whether that is a promise.
func ask9(t *testing.T, conn net.Conn, pid int32, host string) bool {
	t.Helper()
	tell(t, conn, fmt.Sprintf("PIDR %d %s 9", pid, host))
	a, ok := parseAnswer([]byte(hear(t, conn)))
	if !ok || a.verdict != Alive {
		t.Fatalf("answered %+v, %v", a, ok)
	}
	return len(a.birth) > 0
}

func TestSubscriptionBounds(t *testing.T) {
	s := serve(t, "127.0.0.1", ServerConfig{})
	conn := dialServer(t, s, "127.0.0.1")
	d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	other, err := d.Dial("udp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	own := int32(os.Getpid())
	for i := range maxSourceSubscriptions {
		// More than the rate get a promise with the next question.
		eventually(t, "a promise", func() bool { return ask9(t, conn, own, fmt.Sprint("h", i)) })
	}
	time.Sleep(time.Second / 10) // the rate is no reason any more
	if ask9(t, conn, own, "more") {
		t.Error("one too many for one address")
	}
	if !ask9(t, other, own, "h") {
		t.Error("another address is refused for it")
	}
	if !ask9(t, conn, own, "h7") {
		t.Error("one that is there cannot be renewed")
	}
	wantTable(t, s, maxSourceSubscriptions+1, 1)

	s.subs.mu.Lock()
	s.subs.max = 1
	s.subs.mu.Unlock()
	c := start(t, "cat")
	if ask9(t, other, c.pid(), "h") {
		t.Error("one process too many")
	}
	s.subs.mu.Lock()
	s.subs.max = 2
	for i := len(s.subs.byAsker); i < maxSubscriptions; i++ {
		key := asker{pid: -int32(i)}
		s.subs.byAsker[key] = &subscription{asker: key, renewed: time.Since(s.start) + time.Hour}
	}
	s.subs.mu.Unlock()
	if ask9(t, other, c.pid(), "h") {
		t.Error("one too many in all")
	}
	s.subs.mu.Lock()
	for key := range s.subs.byAsker {
		if key.pid < 0 {
			delete(s.subs.byAsker, key)
		}
	}
	s.subs.mu.Unlock()
	if !ask9(t, other, c.pid(), "h") {
		t.Error("there is room again, and no promise")
	}
}

// A flood of new wishes costs no more than its share, and those of old go on.
func TestSubscribeRate(t *testing.T) {
	s := newSubscriptions(nil, time.Now())
	defer s.close()
	var b batch
	ask := func(now time.Duration, host, birth string) string {
		q := question{number: []byte("1"), pid: 1, host: []byte(host), want: tellEnd, birth: []byte(birth)}
		_, got := s.ask(now, &q, q.host, &b, 0)
		return got
	}
	now := time.Hour
	birth := ask(now, "h", "")
	if birth == "" {
		t.Fatal("no promise")
	}
	promised := 0
	for range 2 * subscribeRate {
		if ask(now, "h", "") != "" {
			promised++
		}
	}
	if promised != subscribeRate/10-1 {
		t.Errorf("%d looks into /proc at once, want a tenth of a second's", promised)
	}
	if ask(now, "h", birth) != birth {
		t.Error("one that is there cannot be renewed")
	}
}

// Neither ordinary questions nor renewals allocate.
func TestAnswersDoNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	s := serve(t, "127.0.0.1", ServerConfig{Rate: -1, SourceRate: -1})
	w, err := s.newWorker()
	if err != nil {
		t.Fatal(err)
	}
	defer w.look.close()
	c := start(t, "cat")
	for _, ask := range []string{"PIDR 1 h 7\n", "PIDR 1", fmt.Sprintf("PIDR %d h 10 %s\n", c.pid(), birthOf(c))} {
		once := func() {
			for i := range batchSize {
				d := &w.batch.grams[i]
				d.peer.Family = unix.AF_INET
				w.batch.headers[i].n = uint32(copy(d.data[:], ask))
				w.batch.headers[i].Controllen = 0
			}
			w.batch.messages, w.batch.answers = 0, 0
			w.read(batchSize)
			w.look.look(w.pids[:w.n], w.verdicts[:w.n])
			w.write()
			if w.batch.answers != batchSize {
				t.Fatal("not all answered")
			}
		}
		if n := testing.AllocsPerRun(10, once); n != 0 {
			t.Errorf("%q: %v allocations in %d answers", ask, n, batchSize)
		}
	}
}

// Whatever comes in, at most one answer goes out, it is one to the question, and what
// it says of the process is so.
func FuzzDatagram(f *testing.F) {
	s := serve(f, "127.0.0.1", ServerConfig{Rate: -1, SourceRate: -1})
	w, err := s.newWorker()
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(w.look.close)
	own, err := Lookup(int32(os.Getpid()))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("PIDR 1 h 10\n"))
	f.Add([]byte("PIDR 1 0 15 " + own.birth()))
	f.Add([]byte("PIDR 2147483647 h 8 1" + birthplace()))
	f.Add([]byte("PIDR 1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > maxDatagram {
			return // cut off by the kernel, which says so
		}
		d := &w.batch.grams[0]
		d.peer.Family = unix.AF_INET
		w.batch.headers[0].n = uint32(copy(d.data[:], b))
		w.batch.headers[0].Controllen, w.batch.headers[0].Flags = 0, 0
		w.batch.messages, w.batch.answers = 0, 0
		w.read(1)
		w.look.look(w.pids[:w.n], w.verdicts[:w.n])
		w.write()
		q, ok := parseQuestion(b)
		switch n := w.batch.answers; {
		case n > 1 || n > 0 && !ok:
			t.Fatalf("%q has %d answers", b, n)
		case n == 0:
			return
		}
		text := w.replies[0][:w.batch.vectors[0].Len]
		a, ok := parseAnswer(text)
		if !ok || a.pid != q.pid || len(q.host) > 0 && string(a.host) != string(q.host) || len(text) > maxReply {
			t.Fatalf("%q is answered %q", b, text)
		}
		switch p, _ := Lookup(q.pid); {
		case len(a.birth) > 0 && (q.want&tellEnd == 0 || string(a.birth) != p.birth()):
			t.Fatalf("%q is answered %q, and it is %+v", b, text, p)
		case len(a.birth) == 0 && !q.want.wants(a.verdict):
			t.Fatalf("%q is answered %q, which was not wanted", b, text)
		case a.verdict == Dead && p.PID != 0 && !p.bornAnew(q.birth):
			t.Fatalf("%q is answered %q, and it is %+v", b, text, p)
		}
	})
}

// When the server ends, so does its watcher, and nobody is told a thing.
func TestSubscriptionsEndWithTheServer(t *testing.T) {
	conn, err := Listen(t.Context(), "127.0.0.1", 0)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewServer(conn, ServerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(t.Context()) }()
	asker := dialServer(t, s, "127.0.0.1")
	c := start(t, "cat")
	if !ask9(t, asker, c.pid(), "h") {
		t.Fatal("no promise")
	}
	conn.Close()
	if err := <-ended; err == nil {
		t.Error("it does not mind that its socket is closed")
	}
	wantTable(t, s, 0, 0)
	select {
	case <-s.subs.watcher.done:
	default:
		t.Error("the watcher goes on")
	}
	c.zombie()
	if n := s.Stats().Pushed; n != 0 {
		t.Errorf("%d pushes", n)
	}
}
