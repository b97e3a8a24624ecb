package checkpoint

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/klauspost/compress/zstd"
)

const (
	copyBuffer = 256 << 10
	blockSize  = 512 // of tar
)

// sumParts fills in the parts of a manifest. They are read from memory mostly, as they
// have just been written.
func (m *Manifest) sumParts(dir string) error {
	names, err := images(dir)
	if err != nil {
		return err
	}
	buf := make([]byte, copyBuffer)
	for _, name := range names {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		sum := crc32.New(castagnoli)
		size, err := io.CopyBuffer(sum, onlyReader{f}, buf)
		_ = f.Close()
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		m.Parts = append(m.Parts, Part{Name: name, Size: size, Sum: fmt.Sprintf("%08x", sum.Sum32())})
	}
	return nil
}

// onlyReader keeps io.Copy to the buffer it was given.
type onlyReader struct{ io.Reader }

type onlyWriter struct{ io.Writer }

// writeContext writes a context file of the images in a directory.
func writeContext(w io.Writer, m *Manifest, dir string, compress bool) (err error) {
	if compress {
		z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest))
		if err != nil {
			return err
		}
		return errors.Join(writeTar(z, m, dir), z.Close())
	}
	buffered := bufio.NewWriterSize(w, copyBuffer)
	if err := writeTar(buffered, m, dir); err != nil {
		return err
	}
	return buffered.Flush()
}

func writeTar(w io.Writer, m *Manifest, dir string) error {
	out := tar.NewWriter(w)
	text, err := m.encode()
	if err != nil {
		return err
	}
	if len(text) > maxManifest {
		return fmt.Errorf("the manifest would have %d bytes", len(text))
	}
	if err := out.WriteHeader(m.header(manifestName, int64(len(text)))); err != nil {
		return err
	}
	if _, err := out.Write(text); err != nil {
		return err
	}
	buf := make([]byte, copyBuffer)
	for _, p := range m.Parts {
		if err := out.WriteHeader(m.header(p.Name, p.Size)); err != nil {
			return err
		}
		f, err := os.Open(filepath.Join(dir, p.Name))
		if err != nil {
			return err
		}
		_, err = io.CopyBuffer(onlyWriter{out}, onlyReader{f}, buf)
		_ = f.Close()
		if err != nil {
			return err
		}
	}
	return out.Close()
}

// header is that of a member. Nothing in it is left to chance: see contextReader.next.
func (m *Manifest) header(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: m.Created.Truncate(time.Second), Format: tar.FormatGNU}
}

// blocks reads the blocks of a tar archive and insists that what fills up the last one
// of a member is zero. It keeps the last block, which after [tar.Reader.Next] is the
// header.
type blocks struct {
	r    io.Reader
	pad  int64 // how many zeros come next
	last []byte
}

var errFill = errors.New("what follows it is not zero")

func (b *blocks) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	fill := min(int64(n), b.pad)
	b.pad -= fill
	if len(bytes.Trim(p[:fill], "\x00")) > 0 {
		return 0, errFill
	}
	b.last = append(b.last, p[max(0, n-blockSize):n]...)
	b.last = b.last[max(0, len(b.last)-blockSize):]
	return n, err
}

// zstdMagic begins a frame (RFC 8878, section 3.1.1).
var zstdMagic = []byte{0x28, 0xB5, 0x2F, 0xFD}

// contextReader reads a context file from its beginning.
type contextReader struct {
	blocks   *blocks
	tar      *tar.Reader
	manifest *Manifest
	close    func()
}

// openContext reads the manifest.
func openContext(r io.Reader) (c *contextReader, err error) {
	in := bufio.NewReaderSize(r, 64<<10)
	first, err := in.Peek(len(zstdMagic))
	if err != nil && err != io.EOF {
		return nil, unreadable(err)
	}
	c = &contextReader{blocks: &blocks{r: in}, close: func() {}}
	if bytes.Equal(first, zstdMagic) {
		z, err := zstd.NewReader(in, zstd.WithDecoderMaxWindow(16<<20))
		if err != nil {
			return nil, damaged("the whole", err.Error())
		}
		c.blocks.r, c.close = z, z.Close
	}
	stop := c.close
	defer func() {
		if err != nil {
			stop()
		}
	}()
	c.tar = tar.NewReader(c.blocks)
	h, err := c.tar.Next()
	if err != nil {
		if e := unreadable(err); e != nil {
			return nil, e
		}
		if got := c.blocks.last; len(got) < blockSize && bytes.HasPrefix([]byte(manifestName), got[:min(len(got), len(manifestName))]) {
			return nil, damaged("the header of "+manifestName, "the file ends in it")
		}
		return nil, fail(Perm, syscall.EINVAL, "%w: it is no context file: %w", ErrDamaged, err)
	}
	if h.Name != manifestName {
		return nil, fail(Perm, syscall.EINVAL, "%w: it is no context file: it begins with %.40q", ErrDamaged, h.Name)
	}
	if h.Size > maxManifest {
		return nil, damaged(manifestName, "it is too long")
	}
	first = bytes.Clone(c.blocks.last)
	text, err := io.ReadAll(c.tar)
	if err != nil {
		return nil, cut(manifestName, err)
	}
	c.filled(int64(len(text)))
	if c.manifest, err = decodeManifest(text); err == nil {
		err = c.compare(first, manifestName, h.Size)
	}
	return c, err
}

// compare insists on the header that we would have written. A tar archive says some
// things in several ways, and has a weak sum.
func (c *contextReader) compare(written []byte, name string, size int64) error {
	var ours bytes.Buffer
	if err := tar.NewWriter(&ours).WriteHeader(c.manifest.header(name, size)); err != nil {
		return damaged(name, err.Error())
	}
	if !bytes.Equal(ours.Bytes(), written) {
		return damaged(name, "its header is another")
	}
	return nil
}

// filled says that the rest of the block is to be zero.
func (c *contextReader) filled(size int64) { c.blocks.pad = -size & (blockSize - 1) }

// unpack compares all parts with the manifest and puts them into a directory, if one
// is named.
func (c *contextReader) unpack(dir string) error {
	defer c.close()
	buf := make([]byte, copyBuffer)
	last := manifestName
	for _, p := range c.manifest.Parts {
		h, err := c.tar.Next()
		switch {
		case err == io.EOF:
			return damaged(p.Name, "it is missing")
		case errors.Is(err, errFill):
			return damaged(last, err.Error())
		case err != nil:
			return cut(p.Name, err)
		case h.Name != p.Name || h.Typeflag != tar.TypeReg:
			return damaged(p.Name, fmt.Sprintf("%.40q is in its place", h.Name))
		case h.Size != p.Size:
			return damaged(p.Name, fmt.Sprintf("it has %d bytes, not %d", h.Size, p.Size))
		}
		if err := c.compare(c.blocks.last, p.Name, p.Size); err != nil {
			return err
		}
		if err := c.unpackPart(p, dir, buf); err != nil {
			return err
		}
		c.filled(p.Size)
		last = p.Name
	}
	end := c.blocks.pad + 2*blockSize // tar ends with zeros
	c.blocks.pad = end
	n, err := io.CopyBuffer(onlyWriter{io.Discard}, onlyReader{c.blocks}, buf)
	switch {
	case errors.Is(err, errFill):
		return damaged(last, "another member follows")
	case err != nil:
		return cut("the end", err)
	case n < end:
		return damaged("the end", "it is missing")
	case n > end:
		return damaged("the end", "more follows")
	}
	return nil
}

func (c *contextReader) unpackPart(p Part, dir string, buf []byte) error {
	sum := crc32.New(castagnoli)
	var to io.Writer = sum
	var f *os.File
	if dir != "" {
		var err error
		f, err = os.OpenFile(filepath.Join(dir, p.Name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return classed(err, "unpack the context file")
		}
		defer f.Close()
		to = io.MultiWriter(sum, &sink{f})
	}
	_, err := io.CopyBuffer(to, onlyReader{c.tar}, buf)
	if err == nil && f != nil {
		err = f.Close()
	}
	switch e := (*sinkError)(nil); {
	case errors.As(err, &e):
		return classed(e.error, "unpack the context file")
	case err != nil:
		return cut(p.Name, err)
	}
	if got := fmt.Sprintf("%08x", sum.Sum32()); got != p.Sum {
		return damaged(p.Name, "its checksum is another")
	}
	return nil
}

// sink tells errors of writing from those of reading.
type sink struct{ f *os.File }

type sinkError struct{ error }

func (s *sink) Write(p []byte) (int, error) {
	n, err := s.f.Write(p)
	if err != nil {
		err = &sinkError{err}
	}
	return n, err
}

// cut is the error of a part that could not be read.
func cut(part string, err error) error {
	if e := unreadable(err); e != nil {
		return e
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || err == io.EOF {
		return damaged(part, "the file ends in it")
	}
	return damaged(part, err.Error())
}

// unreadable is for errors of the disk, and nil for others.
func unreadable(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return fail(Args, errno, "read the context file: %w", err)
	}
	return nil
}

// Inspect reads the manifest of a context file, and with all set compares everything
// else with it.
func Inspect(r io.Reader, all bool) (*Manifest, error) {
	c, err := openContext(r)
	if err != nil {
		return nil, err
	}
	if all {
		return c.manifest, c.unpack("")
	}
	c.close()
	return c.manifest, nil
}
