package checkpoint

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"google.golang.org/protobuf/proto"
)

// image is a file of CRIU: numbers that tell its kind, and messages each with its
// length before it. See include/magic.h and images/*.proto of CRIU.
type image struct {
	magic   []byte
	entries [][]byte
}

const (
	imageCommon  = 0x54564319 // the first of two numbers since CRIU 1.6
	imageService = 0x55105940
)

// maxImage bounds the images that are read whole: not those of memory, but those of files, of which
// an entry has some hundred bytes.
const maxImage = 256 << 20

var errImage = errors.New("not an image of CRIU")

func parseImage(data []byte) (*image, error) {
	if len(data) < 8 {
		return nil, errImage
	}
	if first := binary.LittleEndian.Uint32(data); first != imageCommon && first != imageService {
		return nil, errImage
	}
	img := &image{magic: data[:8]}
	for rest := data[8:]; len(rest) > 0; {
		if len(rest) < 4 {
			return nil, errImage
		}
		size := binary.LittleEndian.Uint32(rest)
		if uint64(size) > uint64(len(rest)-4) {
			return nil, errImage
		}
		img.entries = append(img.entries, rest[4:4+size])
		rest = rest[4+size:]
	}
	return img, nil
}

func (img *image) bytes() []byte {
	data := append([]byte(nil), img.magic...)
	for _, e := range img.entries {
		data = binary.LittleEndian.AppendUint32(data, uint32(len(e)))
		data = append(data, e...)
	}
	return data
}

// readImage calls each with all messages of an image. That there is no such file is
// the same as an empty one, as CRIU leaves out what it has no use for.
func readImage(path string, into func() proto.Message, each func(proto.Message) error) error {
	_, err := visit(path, into, func(m proto.Message) (bool, error) { return false, each(m) })
	return err
}

// editImage calls each with all messages of an image, and writes those back for which
// it returns true.
func editImage(path string, into func() proto.Message, each func(proto.Message) (changed bool, err error)) error {
	img, err := visit(path, into, each)
	if err != nil || img == nil {
		return err
	}
	return os.WriteFile(path, img.bytes(), 0o600)
}

// visit returns the image if it was changed.
func visit(path string, into func() proto.Message, each func(proto.Message) (bool, error)) (*image, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxImage+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxImage {
		return nil, fmt.Errorf("%s: %w: it has more than %d bytes", path, errImage, maxImage)
	}
	img, err := parseImage(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	edited := false
	for i, e := range img.entries {
		m := into()
		if err := proto.Unmarshal(e, m); err != nil {
			return nil, fmt.Errorf("%s: %w: %w", path, errImage, err)
		}
		changed, err := each(m)
		if err != nil {
			return nil, err
		}
		if changed {
			if img.entries[i], err = proto.Marshal(m); err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			edited = true
		}
	}
	if !edited {
		return nil, nil
	}
	return img, nil
}
