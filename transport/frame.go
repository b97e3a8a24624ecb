package transport

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// FrameHeader is the size of a frame's header in bytes: the length of the
// payload (u32, big-endian) and its kind (u8).
const FrameHeader = 5

// frameStep bounds how far a reader's buffer runs ahead of the bytes that have
// come in, so that a length alone costs the sender's word and not our memory.
const frameStep = 64 << 10

// ErrFrameTooLarge is returned by [ReadFrame] for a frame longer than its
// reader allows. The stream is of no more use then.
var ErrFrameTooLarge = errors.New("frame too large")

// AppendFrame appends one frame to dst. A payload must be shorter than 4 GiB;
// whoever builds one keeps to the limit of its reader.
func AppendFrame(dst []byte, kind byte, payload []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(payload)))
	dst = append(dst, kind)
	return append(dst, payload...)
}

// ReadFrame reads one frame, with a payload of at most limit bytes. The payload
// is built in buf where that is large enough: pass it on as the next call's buf
// once it has been dealt with. At the end of the stream the error is io.EOF
// between frames and io.ErrUnexpectedEOF within one.
func ReadFrame(r *bufio.Reader, buf []byte, limit int) (kind byte, payload []byte, err error) {
	h, err := r.Peek(FrameHeader)
	if err != nil {
		if err == io.EOF && len(h) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return 0, buf[:0], err
	}
	size, kind := binary.BigEndian.Uint32(h), h[4]
	if uint64(size) > uint64(max(limit, 0)) {
		return 0, buf[:0], fmt.Errorf("%w: %d bytes, at most %d", ErrFrameTooLarge, size, limit)
	}
	if _, err := r.Discard(FrameHeader); err != nil {
		return 0, buf[:0], err
	}
	payload = buf[:0]
	for n := int(size); len(payload) < n; {
		have := len(payload)
		step := min(n-have, max(frameStep, cap(payload)-have))
		payload = slices.Grow(payload, step)[:have+step]
		if _, err := io.ReadFull(r, payload[have:]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, payload[:0], err
		}
	}
	return kind, payload, nil
}
