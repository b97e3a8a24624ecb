//go:build !race

package freezer

const raceEnabled = false
