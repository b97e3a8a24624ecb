package transport

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// selfSigned makes a certificate for 127.0.0.1 and a pool that trusts it.
func selfSigned(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "test"},
		NotAfter:     time.Now().Add(time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func TestDialerTLS(t *testing.T) {
	cert, pool := selfSigned(t)
	ln, err := Listen(t.Context(), "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	m := NewMux(ln)
	share := m.Listen('A')
	served := make(chan error, 1)
	go func() { served <- m.Serve() }()
	defer func() { m.Close(); <-served }()

	d := Dialer{TLS: &tls.Config{RootCAs: pool}}
	c, err := d.Dial(t.Context(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "Ahi")
	in, err := share.Accept()
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 2)
	if _, err := io.ReadFull(in, got); err != nil || string(got) != "hi" {
		t.Fatalf("read %q, %v", got, err)
	}

	d = Dialer{TLS: &tls.Config{RootCAs: x509.NewCertPool()}}
	if c, err := d.Dial(t.Context(), ln.Addr().String()); err == nil {
		c.Close()
		t.Fatal("a certificate that nobody trusts was accepted")
	}
}

func TestDialerErrors(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	if _, err := new(Dialer).Dial(t.Context(), addr); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: %v, want ECONNREFUSED", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := new(Dialer).Dial(ctx, addr); err == nil {
		t.Error("a cancelled dial succeeded")
	}
}

func TestUserTimeoutIsSet(t *testing.T) {
	ln, err := Listen(t.Context(), "127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	out, err := new(Dialer).Dial(t.Context(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	for name, c := range map[string]net.Conn{"dialled": out, "accepted": in} {
		rc, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var ms int
		if cerr := rc.Control(func(fd uintptr) {
			ms, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
		}); cerr != nil || err != nil {
			t.Fatal(cerr, err)
		}
		if ms != 10_000 {
			t.Errorf("%s: user timeout of %d ms, want 10000", name, ms)
		}
	}
}
