package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/lockerd/lockerd/pidprobe"
)

// serveAs is a program of the test binary: a pidstatd of ours, or one that does less.
func serveAs(kind string) error {
	conn, err := pidprobe.Listen(context.Background(), "", pidprobe.DefaultPort)
	if err != nil {
		return err
	}
	fmt.Println("serving")
	switch kind {
	case "pidstatd":
		s, err := pidprobe.NewServer(conn, pidprobe.ServerConfig{})
		if err != nil {
			return err
		}
		return s.Serve(context.Background())
	case "old pidstatd":
		return serveOld(conn)
	case "pidstatd without pushes":
		return loseWhatIsPushed(conn)
	}
	return fmt.Errorf("nothing serves as %s", kind)
}

// serveOld answers as IPC::Locker 1.502 does, by its description: three bits of the
// flags count, and what comes after them is ignored.
func serveOld(conn *net.UDPConn) error {
	b := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(b)
		if err != nil {
			return err
		}
		f := strings.Fields(string(b[:n]))
		if len(f) < 4 || f[0] != "PIDR" {
			continue
		}
		pid, _ := strconv.Atoi(f[1])
		flags, _ := strconv.Atoi(f[3])
		switch pidprobe.Check(pidprobe.Process{PID: int32(pid)}) {
		case pidprobe.Alive:
			if flags&1 != 0 {
				_, err = conn.WriteToUDPAddrPort(fmt.Appendf(nil, "EXIS %d 1 %s", pid, f[2]), from)
			}
		case pidprobe.Dead:
			if flags&2 != 0 {
				_, err = conn.WriteToUDPAddrPort(fmt.Appendf(nil, "EXIS %d 0 %s", pid, f[2]), from)
			}
		}
		if err != nil {
			return err
		}
	}
}

// loseWhatIsPushed has another pidstatd answer, and loses each UNKN of it. What it
// loses it tells on stdout.
func loseWhatIsPushed(conn *net.UDPConn) error {
	behind, err := pidprobe.Listen(context.Background(), os.Getenv("PIDWATCH_TEST_ADDRESS"), 0)
	if err != nil {
		return err
	}
	s, err := pidprobe.NewServer(behind, pidprobe.ServerConfig{})
	if err != nil {
		return err
	}
	go func() { _ = s.Serve(context.Background()) }()
	ways := map[netip.AddrPort]net.Conn{}
	b := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(b)
		if err != nil {
			return err
		}
		if ways[from] == nil {
			c, err := net.Dial("udp", s.Addr().String())
			if err != nil {
				return err
			}
			ways[from] = c
			go func() {
				b := make([]byte, 2048)
				for {
					n, err := c.Read(b)
					if err != nil {
						return
					}
					if strings.HasPrefix(string(b[:n]), "UNKN") {
						fmt.Printf("lost %s\n", b[:n])
						continue
					}
					_, _ = conn.WriteToUDPAddrPort(b[:n], from)
				}
			}()
		}
		if _, err := ways[from].Write(b[:n]); err != nil {
			return err
		}
	}
}
