// Package self is for programs that have themselves checkpointed, at a moment that suits
// them, and for those who do it for them.
//
//	restored, err := self.Checkpoint(ctx, "/var/jobs/state.ckpt", self.Stay)
//	switch {
//	case err != nil: // it runs on, and there is no new file
//	case restored: // a restart: open connections again, look at the time
//	default: // the file is safe
//	}
//
// The file is that of package checkpoint, and cr_restart(1) starts the program from it: in
// the same call, which returns a second time. It may do so in several programs, if the file
// is restarted several times; [Ask] tells each of them a word that no other has.
//
// # Protocol
//
// Who checkpoints is a server, root, at the UNIX stream socket that the environment names
// in [SocketVariable]. No process may be connected to the outside when it is checkpointed,
// so the answer comes by another way, a pipe (pipe(2)) that the program makes for it:
//
//	program                                    server
//	pipe, connect
//	"ckpt [exit] PIPE PATH\n"             ->
//	                                      <-   "ok\n", or "failed ERRNO TEXT\n"
//	close                                      waits for the end of the connection
//	reads from the pipe                        checkpoints
//	                                           opens /proc/PID/fd/PIPE:
//	                                      <-   "running\n", "restored WORD\n", or "failed ERRNO TEXT\n"
//
// PIPE is the descriptor of either end in the process that is connected, in decimal. PATH
// is absolute, the rest of the line, and at most [MaxPath] bytes long. With exit all
// processes are killed when the file is safe. The program has both ends of the pipe open
// until it has read an answer. It never gets one if the server is killed: it may give up
// waiting, but the pipe stays open then, because the number might come to mean another
// pipe that a late answer would go into.
//
// "restored" is written by whoever restarts the program. There is nothing of the server's
// in the file, and it need not be there.
//
// # Who may
//
// What is checkpointed is the whole tree of the job, of which the caller has to be part.
// The caller is known by the socket (SO_PEERCRED in unix(7)). Root may all. Another user
// may if every process in the tree is theirs and nobody else's, has no capability, and
// lets itself be read; and the file is made with their rights: where they cannot write
// there is none.
//
// # Signals
//
// [SIGCKPT] and [SIGCKPTEXIT] ask a program to checkpoint itself when it suits it. Their
// default action kills, so they are for those only that [Catches] tells of. A Go program
// gets them with [Notify].
//
// # Invariants
//
// A caller that never ends the protocol is dropped after a time ([Options.Patience]). One
// job is checkpointed once at a time. No file is opened, and nothing is written into a
// pipe, on the word of one who may not.
package self
