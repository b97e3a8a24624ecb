package main

import (
	"fmt"
	"strings"
)

// decode turns each + into a space and each %HH into its byte, once: what that
// yields is not looked at again. Other percent signs stay.
func decode(s string) string {
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '+':
			c = ' '
		case c == '%' && i+2 < len(s):
			high, low := hex(s[i+1]), hex(s[i+2])
			if high < 16 && low < 16 {
				c = high<<4 | low
				i += 2
			}
		}
		b = append(b, c)
	}
	return string(b)
}

// hex is the value of a hexadecimal digit, 16 if it is none.
func hex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 16
}

// show is a text decoded for people, level by level: what follows a nested
// uriexec is decoded once more.
func show(s string) string {
	var b strings.Builder
	level := 1
	for ; ; level++ {
		s = decode(s)
		outer, inner, nested := cutUriexec(s)
		if !nested {
			break
		}
		fmt.Fprintf(&b, "{%d{ %s ", level, outer)
		s = inner
	}
	fmt.Fprintf(&b, "{%d{ %s }%d ", level, s, level)
	for level--; level > 0; level-- {
		fmt.Fprintf(&b, " }%d} ", level)
	}
	return b.String()
}

// cutUriexec splits after the first word uriexec and one blank.
func cutUriexec(s string) (outer, inner string, found bool) {
	const word = "uriexec"
	for from := 0; ; {
		i := strings.Index(s[from:], word)
		if i < 0 {
			return "", "", false
		}
		i += from
		end := i + len(word)
		if (i == 0 || !isWordByte(s[i-1])) && end < len(s) && isBlank(s[end]) {
			return s[:end+1], s[end+1:], true
		}
		from = end
	}
}

func isWordByte(c byte) bool { return c == '_' || hex(c) < 10 || 'a' <= c|0x20 && c|0x20 <= 'z' }

func isBlank(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' }
