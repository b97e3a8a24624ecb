package overlay

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestApply(t *testing.T) {
	got, err := apply("one two", Patch{Old: "two", New: "three"})
	if got != "one three" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	for _, text := range []string{"one", "two two"} {
		if _, err := apply(text, Patch{Old: "two"}); !errors.Is(err, ErrMoved) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// The sources that the variants change are still what they were made for.
func TestVariantsFit(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for name, patches := range variants() {
		args, err := Write(t.Context(), root, filepath.Join(t.TempDir(), "o"), patches)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for i, a := range args {
			if a == "-overlay" || a == "-modfile" {
				if _, err := os.Stat(args[i+1]); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	}
}

func variants() map[string][]Patch {
	all := map[string][]Patch{"clock": Clock, "snapshots": Snapshots}
	for _, m := range Mutants {
		all[m.Name] = m.Patches
	}
	return all
}
