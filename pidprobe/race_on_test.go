//go:build race

package pidprobe

const raceEnabled = true
