package model

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// line is an operation of a history that is told in order, each after the one before.
type line struct {
	in  Input
	out Output
}

// tell makes a history of operations that do not overlap, but for those whose outcome is
// not known: they have no end.
func tell(lines ...line) (ops []porcupine.Operation) {
	for i, l := range lines {
		op := porcupine.Operation{ClientId: i, Input: l.in, Output: l.out, Call: int64(2 * i), Return: int64(2*i + 1)}
		if l.out.Status == Unknown {
			op.Return = Forever
		}
		ops = append(ops, op)
	}
	return ops
}

func get(client, mode string, slots int, token uint64) line {
	return line{Input{Kind: Acquire, Client: client, Mode: mode, Slots: slots}, Output{Token: token}}
}

func busy(client, mode string, slots int) line {
	return line{Input{Kind: Acquire, Client: client, Mode: mode, Slots: slots}, Output{Status: Busy}}
}

func put(client string, token uint64) line {
	return line{Input{Kind: Release, Client: client, Token: token}, Output{}}
}

func over(client string, token uint64) line {
	return line{Input{Kind: Expire, Owner: client, Token: token}, Output{}}
}

func unknown(l line) line {
	l.out = Output{Status: Unknown}
	return l
}

func reads(owner string) line { return line{Input{Kind: Read}, Output{Owner: owner}} }

func queued(l line) line {
	l.in.Queue = true
	return l
}

func TestPermitHistories(t *testing.T) {
	for _, c := range []struct {
		name  string
		legal bool
		lines []line
	}{
		{"readers together", true, []line{get("a", Shared, 0, 1), get("b", Shared, 0, 2), put("a", 1), put("b", 2), get("c", "", 0, 3)}},
		{"a writer among readers", false, []line{get("a", Shared, 0, 1), get("b", Shared, 0, 2), put("a", 1), get("c", "", 0, 3)}},
		{"a reader beside a writer", false, []line{get("a", "", 0, 1), get("b", Shared, 0, 2)}},
		{"two writers", false, []line{get("a", "", 0, 1), get("b", "", 0, 2)}},
		{"three slots", true, []line{get("a", Slots, 3, 1), get("b", Slots, 3, 2), get("c", Slots, 3, 3), busy("d", Slots, 3), put("b", 2), get("d", Slots, 3, 4)}},
		{"a fourth of three", false, []line{get("a", Slots, 3, 1), get("b", Slots, 3, 2), get("c", Slots, 3, 3), get("d", Slots, 3, 4)}},
		{"busy with a slot to spare", false, []line{get("a", Slots, 3, 1), get("b", Slots, 3, 2), busy("c", Slots, 3)}},
		{"busy when all is free", false, []line{busy("c", Slots, 3)}},
		{"a reader is told busy among readers", false, []line{get("a", Shared, 0, 1), busy("b", Shared, 0)}},
		{"but a writer may wait in front", true, []line{get("a", Shared, 0, 1), queued(busy("b", Shared, 0))}},
		{"nobody waits in front of a free lock", false, []line{queued(busy("b", Shared, 0))}},
		{"a token given out again", false, []line{get("a", Shared, 0, 2), get("b", Shared, 0, 2)}},
		{"a token that is too low", false, []line{get("a", Shared, 0, 2), get("b", Shared, 0, 1)}},
		{"told again what it has", true, []line{get("a", Shared, 0, 2), get("b", Shared, 0, 3), get("a", Shared, 0, 2)}},
		{"another token for what it has", false, []line{get("a", Slots, 3, 2), get("a", Slots, 3, 3)}},
		{"released by a stranger", false, []line{get("a", Shared, 0, 1), get("b", Shared, 0, 2), put("c", 1)}},
		{"released twice", false, []line{get("a", Shared, 0, 1), put("a", 1), put("a", 1)}},
		{"ended by the servers", true, []line{get("a", "", 0, 1), over("a", 1), get("b", Shared, 0, 2)}},
		{"ended and released", false, []line{get("a", "", 0, 1), over("a", 1), put("a", 1)}},
		{"an unknown acquire may have been", true, []line{get("a", Slots, 2, 1), unknown(get("b", Slots, 2, 0)), busy("c", Slots, 2)}},
		{"or not", true, []line{get("a", Slots, 2, 1), unknown(get("b", Slots, 2, 0)), get("c", Slots, 2, 2)}},
		{"but not both", false, []line{get("a", Slots, 2, 1), unknown(get("b", Slots, 2, 0)), busy("c", Slots, 2), get("c", Slots, 2, 2)}},
		{"its end binds its token", true, []line{unknown(get("b", Slots, 2, 0)), get("a", Slots, 2, 1), over("b", 2), get("c", Slots, 2, 3)}},
		{"and is no other's", false, []line{get("a", Slots, 2, 1), over("b", 2)}},
		{"broken", true, []line{get("a", Shared, 0, 1), get("b", Shared, 0, 2), {Input{Kind: Break}, Output{Owner: "b"}}, get("c", "", 0, 3)}},
		{"broken, but whose", false, []line{get("a", Shared, 0, 1), {Input{Kind: Break}, Output{Owner: "z"}}}},
		{"read", true, []line{reads(""), get("a", Shared, 0, 1), get("b", Shared, 0, 2), reads("b"), reads("a")}},
		{"read as free", false, []line{get("a", Shared, 0, 1), reads("")}},
	} {
		want := porcupine.Illegal
		if c.legal {
			want = porcupine.Ok
		}
		if r := porcupine.CheckOperationsTimeout(PermitLock, tell(c.lines...), 10*time.Second); r != want {
			t.Errorf("%s: %s", c.name, r)
		}
	}
}

func anyOf(client string, at []int, got int, token uint64) line {
	l := line{Input{Kind: Acquire, Client: client, At: at}, Output{Token: token, At: []int{got}}}
	l.in.Locks = make([]string, len(at)) // their names do not matter
	return l
}

func first(l line) line {
	l.in.First = true
	return l
}

func allOf(client string, at []int, token uint64) line {
	return line{Input{Kind: Acquire, Client: client, At: at, All: true}, Output{Token: token, At: at}}
}

func noneOf(client string, at ...int) line {
	return line{Input{Kind: Acquire, Client: client, At: at}, Output{Status: Busy}}
}

func noneOfAll(client string, at []int) line {
	return line{Input{Kind: Acquire, Client: client, At: at, All: true}, Output{Status: Busy}}
}

func puts(client string, token uint64, at ...int) line {
	return line{Input{Kind: Release, Client: client, Token: token, At: at}, Output{}}
}

func TestJointHistories(t *testing.T) {
	two := []int{0, 1}
	twice := anyOf("b", two, 0, 2)
	twice.out.At = two
	for _, c := range []struct {
		name  string
		legal bool
		lines []line
	}{
		{"one each", true, []line{anyOf("a", two, 0, 1), anyOf("b", two, 1, 2), noneOf("c", 0, 1), puts("a", 1, 0), anyOf("c", two, 0, 3)}},
		{"two of any", false, []line{twice}},
		{"one that was not named", false, []line{anyOf("a", two, 2, 1)}},
		{"one that is held", false, []line{anyOf("a", two, 0, 1), anyOf("b", two, 0, 2)}},
		{"busy with one free", false, []line{anyOf("a", two, 0, 1), noneOf("b", 0, 1)}},
		{"busy, each at another time", false, []line{
			anyOf("a", two, 0, 1), puts("a", 1, 0), anyOf("a", two, 1, 2), noneOf("b", 0, 1),
		}},
		{"not the first, with the first free", false, []line{first(anyOf("a", two, 1, 1))}},
		{"after waiting it may be", true, []line{anyOf("a", two, 1, 1)}},
		{"not the first, with the first held", true, []line{anyOf("a", two, 0, 1), first(anyOf("b", two, 1, 2))}},
		{"tokens fall over two locks", false, []line{anyOf("a", two, 0, 2), anyOf("b", two, 1, 1)}},
		{"all", true, []line{allOf("a", two, 1), puts("a", 1, 0, 1), allOf("b", two, 2)}},
		{"all, busy with one held", true, []line{anyOf("a", two, 1, 1), noneOfAll("b", two)}},
		{"all, busy with none held", false, []line{anyOf("a", []int{2}, 2, 1), noneOfAll("b", two)}},
		{"all, busy with one kept for another", true, []line{queued(noneOfAll("b", two))}},
		{"all, with one held", false, []line{anyOf("a", two, 1, 1), allOf("b", two, 2)}},
		{"not all", false, []line{{Input{Kind: Acquire, Client: "a", At: two, All: true}, Output{Token: 1, At: []int{0}}}}},
		{"one of all is broken", true, []line{allOf("a", two, 1), {Input{Kind: Break, At: []int{1}}, Output{Owner: "a"}}, anyOf("b", two, 0, 2)}},
		{"all end at once", true, []line{allOf("a", two, 1), {Input{Kind: Expire, Token: 1, At: two}, Output{}}, anyOf("b", two, 1, 2)}},
		{"ended twice", false, []line{allOf("a", two, 1), puts("a", 1, 0, 1), {Input{Kind: Expire, Token: 1, At: two}, Output{}}}},
		{"read", true, []line{allOf("a", two, 1), {Input{Kind: Read, At: []int{1}}, Output{Owner: "a"}}}},
		{"read of another", false, []line{allOf("a", two, 1), {Input{Kind: Read, At: []int{1}}, Output{Owner: "b"}}}},
		{"released by a stranger", false, []line{anyOf("a", two, 0, 1), puts("b", 1, 0)}},
	} {
		want := porcupine.Illegal
		if c.legal {
			want = porcupine.Ok
		}
		if r := porcupine.CheckOperationsTimeout(JointLocks, tell(c.lines...), 10*time.Second); r != want {
			t.Errorf("%s: %s", c.name, r)
		}
	}
}

// farm is a correct service of slots or of any of several locks, with clients that
// overlap at random.
func farm(seed uint64, n int, slots bool) (ops []porcupine.Operation) {
	rng := rand.New(rand.NewPCG(seed, 2))
	const clients = 10
	type hold struct {
		token uint64
		at    int
	}
	held := map[int]*hold{}
	now, token := int64(0), uint64(0)
	free := make([]int64, clients)
	var tokens []uint64
	for len(ops) < n {
		now += 1 + rng.Int64N(8)
		c := rng.IntN(clients)
		if free[c] > now {
			continue
		}
		name := string(rune('a' + c))
		in, out := Input{Kind: Acquire, Client: name, Mode: Slots, Slots: 3}, Output{}
		taken := map[int]bool{}
		for _, h := range held {
			taken[h.at] = true
		}
		switch h := held[c]; {
		case h != nil:
			in = Input{Kind: Release, Client: name, Token: h.token, At: []int{h.at}}
			delete(held, c)
		case slots && len(held) == 3:
			out.Status = Busy
		case slots:
			token++
			held[c], out.Token = &hold{token: token}, token
		default:
			in = Input{Kind: Acquire, Client: name, At: rng.Perm(4)[:2], First: true}
			i := slices.IndexFunc(in.At, func(l int) bool { return !taken[l] })
			if i < 0 {
				out.Status = Busy
				break
			}
			token++
			held[c], out = &hold{token, in.At[i]}, Output{Token: token, At: in.At[i : i+1]}
		}
		if in.Kind == Acquire && out.Status == OK && len(tokens) > 0 {
			in.Prev = tokens[len(tokens)-1]
		}
		if in.Kind == Acquire && out.Status == OK {
			tokens = append(tokens, out.Token)
		}
		op := porcupine.Operation{ClientId: c, Input: in, Output: out, Call: max(free[c], now-rng.Int64N(40)), Return: now + 1 + rng.Int64N(40)}
		free[c] = op.Return + 1
		ops = append(ops, op)
	}
	return ops
}

// Long histories are judged in little time, good ones and bad ones.
func TestLongHistories(t *testing.T) {
	for name, slots := range map[string]bool{"slots": true, "any of two": false} {
		m := JointLocks
		if slots {
			m = PermitLock
		}
		for seed := range uint64(5) {
			ops := farm(seed, 2000, slots)
			if r := porcupine.CheckOperationsTimeout(m, ops, 10*time.Second); r != porcupine.Ok {
				t.Errorf("%s, seed %d: %s", name, seed, r)
			}
			for i := len(ops) / 2; i < len(ops); i++ {
				if out := ops[i].Output.(Output); out.Status == Busy {
					in := ops[i].Input.(Input)
					out = Output{Token: 1 << 40}
					if len(in.At) > 0 {
						out.At = in.At[:1]
					}
					ops[i].Output = out
					break
				}
			}
			if r := porcupine.CheckOperationsTimeout(m, ops, 10*time.Second); r != porcupine.Illegal {
				t.Errorf("%s, seed %d, a grant in place of a refusal: %s", name, seed, r)
			}
		}
	}
}
