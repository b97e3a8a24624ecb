package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
)

const (
	// namesFile is where a server notes what the others are called: Raft's configuration
	// has ids and addresses, and a server that did not come back after all were stopped
	// tells its name to nobody.
	namesFile = "names.json"

	maxNames = 1 << 20 // bytes
)

// loadNames reads the names of servers by id. That there are none is no error.
func loadNames(dir string) (map[string]string, error) {
	f, err := os.Open(filepath.Join(dir, namesFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the names of servers: %w", err)
	}
	defer f.Close()
	names := make(map[string]string)
	if err := json.NewDecoder(io.LimitReader(f, maxNames)).Decode(&names); err != nil {
		return nil, fmt.Errorf("read the names of servers in %s: %w", f.Name(), err)
	}
	return names, nil
}

func saveNames(dir string, names map[string]string) error {
	b, err := json.MarshalIndent(names, "", "\t")
	if err == nil {
		err = writeFileSync(filepath.Join(dir, namesFile), append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("note the names of servers: %w", err)
	}
	return nil
}

// notesNames says whether this node has somewhere to note names, and a use for them.
func (g *gossip) notesNames() bool { return !g.node.cfg.Agent && g.node.cfg.Stores == nil }

// keepNames notes the names of servers whenever gossip tells of one.
func (g *gossip) keepNames() {
	noted, _ := loadNames(g.node.cfg.DataDir)
	for {
		select {
		case <-g.node.ctx.Done():
			return
		case <-g.named:
		}
		names := g.serverNames()
		if maps.Equal(names, noted) {
			continue
		}
		if err := saveNames(g.node.cfg.DataDir, names); err != nil {
			// They serve people alone, and the next server that comes or goes is the next try.
			g.log.Warn("after a restart of all servers, those that stay away will be known by their ids only", "error", err)
			continue
		}
		noted = names
	}
}

// serverNames are the names of this cluster's servers, and of those that are to be.
func (g *gossip) serverNames() map[string]string {
	ids := []string{g.node.id}
	for _, s := range g.node.voters() {
		ids = append(ids, string(s.ID))
	}
	for _, m := range g.servers() {
		ids = append(ids, m.ID)
	}
	all, names := g.node.names(), make(map[string]string)
	for _, id := range ids {
		if name := all[id]; name != "" {
			names[id] = name
		}
	}
	return names
}
