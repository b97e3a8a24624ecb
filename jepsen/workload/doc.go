// Package workload is what clients do in a run, and what the harness notes of it.
//
// The clients are goroutines of the harness that use the Go client, each under a
// user of its own, or speak the line protocol themselves, once for each operation. When the outcome of an operation is not known, the client goes
// on under a new process number and user, and the old user is abandoned: a janitor
// ends what it may hold still, as an operator would, and its doing is part of the
// history.
package workload
