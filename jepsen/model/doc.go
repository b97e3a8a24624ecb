// Package model says what a lock service may answer, as state machines that
// porcupine searches for an order of the operations that explains all answers.
//
// It imports nothing of the product and knows nothing of how it works.
package model
