package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"time"

	"github.com/lockerd/lockerd/client"
	"github.com/lockerd/lockerd/transport"
)

// Example takes a lock around a critical section, hands its fence to what the lock
// protects, and stops when the lock is lost.
func Example() {
	ctx := context.Background()
	lock, err := client.Acquire(ctx, client.Options{
		Hosts:      exampleServer(),
		Locks:      []string{"one_per_farm"},
		Autounlock: true, // should this process die, the lock is free at once
		WaitLimit:  time.Minute,
	})
	if err != nil {
		log.Print(err)
		return
	}
	defer lock.Close()

	work := time.After(time.Millisecond)
	select {
	case <-work:
		fmt.Println("done under fence", lock.Fence())
	case loss := <-lock.Lost():
		fmt.Println("stopped: the lock was lost:", loss)
		return
	}
	if err := lock.Unlock(ctx); err != nil {
		log.Print(err)
	}
	// Output: done under fence 1
}

// A lock that is busy is no reason to wait for everybody.
func ExampleLocker_Lock_try() {
	lock, err := client.New(client.Options{Hosts: exampleServer(), Locks: []string{"busy"}, Try: true})
	if err != nil {
		log.Print(err)
		return
	}
	defer lock.Close()
	switch err := lock.Lock(context.Background()); {
	case errors.Is(err, client.ErrBusy):
		fmt.Println("somebody else is at it")
	case errors.Is(err, client.ErrNoServer):
		fmt.Println("is lockerd running?")
	case err != nil:
		fmt.Println(err)
	}
	// Output: somebody else is at it
}

// Any of several licences will do.
func ExampleLocker_LockName() {
	lock, err := client.Acquire(context.Background(), client.Options{
		Hosts: exampleServer(),
		Locks: []string{"busy", "licence1", "licence2"},
	})
	if err != nil {
		log.Print(err)
		return
	}
	defer lock.Close()
	fmt.Println("using", lock.LockName())
	// Output: using licence1
}

func ExampleLocker_Owner() {
	lock, err := client.New(client.Options{Hosts: exampleServer(), Locks: []string{"busy"}})
	if err != nil {
		log.Print(err)
		return
	}
	owner, err := lock.Owner(context.Background())
	fmt.Println(owner, err)
	// Output: another <nil>
}

func ExampleSplitHosts() {
	fmt.Printf("%q\n", client.SplitHosts("lock1:lock2:1752:[fd00::1]:1752"))
	// Output: ["lock1" "lock2:1752" "[fd00::1]:1752"]
}

// exampleServer is a server just large enough for the examples: the lock "busy" is
// another's, and every other is free.
func exampleServer() []string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Panic(err)
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go serveExample(c)
		}
	}()
	return []string{ln.Addr().String()}
}

func serveExample(c net.Conn) {
	defer c.Close()
	r := transport.NewReader(c)
	for {
		q, err := r.Next()
		if err != nil {
			return
		}
		var out []byte
		switch q.Verb {
		case transport.VerbProto:
			out = transport.AppendProto(nil, "example")
		case transport.VerbPing:
			out = transport.AppendPong(nil)
		case transport.VerbLock, transport.VerbStatus:
			s := transport.Status{Owner: "another"}
			for _, name := range q.Locks {
				if name != "busy" {
					s = transport.Status{Owner: q.User, Locked: true, Locks: []string{name}, Fence: 1}
					break
				}
			}
			out = s.Append(nil, 2)
		case transport.VerbUnlock:
			out = transport.Status{}.Append(nil, 2)
		}
		if _, err := c.Write(out); err != nil {
			return
		}
	}
}
