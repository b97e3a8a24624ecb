//go:build race

package freezer

const raceEnabled = true
