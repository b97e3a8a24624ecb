// Package gen says what is to happen in a run: which fault when, and what each
// client does next. All of it is a function of a seed, so that the same seed
// gives the same schedule. What the cluster makes of it is not: real processes
// interleave as they please.
package gen
