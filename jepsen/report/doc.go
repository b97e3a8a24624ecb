// Package report shows a run: its verdict, who did what when, how long it took,
// which faults there were and who led.
package report
