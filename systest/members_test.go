package systest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/lockerd/lockerd/systest/farm"
)

// post has a node carry out an operator's command.
func post(n *farm.Node, path string, body map[string]any, reply any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	resp, err := http.Post("http://"+n.HTTP()+path, "application/json", bytes.NewReader(b))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if b, err = io.ReadAll(resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%d: %s", resp.StatusCode, strings.TrimSpace(string(b)))
	}
	return json.Unmarshal(b, reply)
}

// Leadership goes where an operator wants it, by way of any node, while clients wait.
func TestTransfer(t *testing.T) {
	f := start(t, farm.Options{Servers: 3, Agents: 1})
	old := leader(t, f)
	var others []*farm.Node
	for _, n := range f.Nodes[:3] {
		if n != old {
			others = append(others, n)
		}
	}
	agent := f.Nodes[3]
	holder, waiter := connect(t, agent.Client()), connect(t, old.Client())
	must(t, holder.lock("holder", "one", granted))
	must(t, waiter.send("user waiter\nlocks one\nblock 1\nLOCK\n\n"))
	if _, _, err := waiter.waiting(1, granted); err != nil {
		t.Fatal(err)
	}
	var got struct{ Leader string }
	for _, by := range []*farm.Node{agent, old, others[0], others[1]} {
		for _, to := range []string{others[0].Name, "", old.Name} {
			was := leader(t, f)
			must(t, post(by, "/v1/transfer", map[string]any{"to": to}, &got))
			if to != "" && got.Leader != to || to == "" && got.Leader == was.Name {
				t.Fatalf("asked of %s for %q while %s led: %s leads", by.Name, to, was.Name, got.Leader)
			}
			if now := leader(t, f); now.Name != got.Leader {
				t.Fatalf("%s was said to lead, %s does", got.Leader, now.Name)
			}
		}
	}
	must(t, holder.unlock("holder", "one", granted))
	must(t, waiter.grant("waiter", granted))

	others[0].Kill()
	await(t, granted, "a dead server to be refused", func() error {
		err := post(agent, "/v1/transfer", map[string]any{"to": others[0].Name}, &got)
		if err == nil || !strings.Contains(err.Error(), "409") || !strings.Contains(err.Error(), "not in touch") {
			return fmt.Errorf("%s leads, %v", got.Leader, err)
		}
		return nil
	})
	must(t, post(agent, "/v1/transfer", map[string]any{"to": ""}, &got))
	if got.Leader != others[1].Name {
		t.Errorf("%s leads, want the only other one that lives", got.Leader)
	}
	for _, to := range []string{agent.Name, "nobody"} {
		if err := post(old, "/v1/transfer", map[string]any{"to": to}, &got); err == nil || !strings.Contains(err.Error(), "409") {
			t.Errorf("to %s: %v", to, err)
		}
	}
	began := time.Now()
	must(t, connect(t, old.Client()).lock("later", "two", granted))
	if took := time.Since(began); took > time.Second {
		t.Errorf("a lock took %v", took)
	}
}
