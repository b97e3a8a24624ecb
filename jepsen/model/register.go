package model

import (
	"fmt"

	"github.com/anishathalye/porcupine"
)

// Write is an input of Register: a value under a token.
type Write struct {
	Value int
	Token uint64
	Read  bool // no write: Output.Value is what was read
}

// WriteResult is its output.
type WriteResult struct {
	Accepted bool
	Value    int
}

// Cell is the state of a register that a token guards.
type Cell struct {
	Value    int
	MaxToken uint64
}

// StepRegister accepts a write if, and only if, no greater token was seen before.
func StepRegister(s Cell, in Write, out WriteResult) (bool, Cell) {
	switch {
	case in.Read:
		return s.Value == out.Value, s
	case out.Accepted:
		return in.Token >= s.MaxToken, Cell{in.Value, in.Token}
	}
	return in.Token < s.MaxToken, s
}

// Register checks the history of one register.
var Register = porcupine.Model{
	Init: func() any { return Cell{} },
	Step: func(st, in, out any) (bool, any) {
		ok, s := StepRegister(st.(Cell), in.(Write), out.(WriteResult))
		return ok, s
	},
	Equal:             func(a, b any) bool { return a.(Cell) == b.(Cell) },
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v -> %+v", in, out) },
}
