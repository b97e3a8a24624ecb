// Package proc runs one program that may be stopped, killed and started again,
// and keeps what it prints.
package proc
