// Package overlay builds variants of a program without a trace of them in its
// source: "go build -overlay" reads patched copies of some files instead.
//
// A variant is a list of small replacements. One whose text is not found, or not
// just once, is an error: the source has moved on, and the variant would be the
// program itself under another name.
package overlay
