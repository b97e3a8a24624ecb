// Package check judges a history. Direct checks look for one kind of wrong each,
// in time that grows little faster than the history; porcupine gives a second
// opinion that rests on nothing but what clients were told and a model.
//
// # Certain holds
//
// A client certainly holds a lock from the return of its acquire until the first
// moment at which something that the harness did itself may have ended the hold:
// the call of its release, of a break of that lock, the death of its process, or
// the end of its limit, counted from the call of the acquire. Two certain holds
// that exclude each other and overlap are a violation, whatever the servers say.
//
// # What shows that a check can fail
//
// Each of Checks has a history made up in a test that it fails, and a deliberate fault of
// the server that it is to catch (package overlay): a test walks through all of them.
package check
