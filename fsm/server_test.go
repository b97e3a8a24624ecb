package fsm

import (
	"fmt"
	"slices"
	"testing"
)

// TestRemovedAreBounded: of too many removed servers, the oldest are forgotten; what
// was captured before stays as it was.
func TestRemovedAreBounded(t *testing.T) {
	m := New()
	apply(m, NodeJoin{Name: "n", Nonce: [16]byte{1}})
	apply(m, NodesAway{Nodes: []Incarnation{1}}) // another part of the snapshot
	apply(m, RemoveServer{ID: "first"})
	before := m.Snapshot()
	apply(m, RemoveServer{ID: "first", Out: true})
	for i := range maxRemoved {
		apply(m, RemoveServer{ID: fmt.Sprint(i), Out: true})
	}
	mustCheck(t, m)
	if before.removed[0].Out {
		t.Error("a snapshot has changed")
	}
	back, err := Restore(encode(t, m))
	if err != nil {
		t.Fatal(err)
	}
	if !back.Nodes()[0].Away {
		t.Error("the node is not away any more")
	}
	list := back.Removed()
	if len(list) != maxRemoved || list[0].ID != "0" || list[maxRemoved-1].ID != fmt.Sprint(maxRemoved-1) || !slices.Equal(list, m.Removed()) {
		t.Errorf("%d are remembered, from %+v to %+v", len(list), list[0], list[len(list)-1])
	}
}
