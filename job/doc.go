// Package job runs one command for as long as something is held for it.
//
// The command is to notice nothing: standard streams, further inherited
// descriptors, environment, working directory, terminal, job control, signals and
// exit status are what they would be without the wrapper. What the wrapper adds
// is an end: after [Job.Lost] nothing that the command started goes on running.
//
// # Process groups and the terminal
//
// The command gets a process group of its own, and with it the terminal when we
// have it, as a shell does it for its jobs: Ctrl-C reaches the command alone,
// Ctrl-Z stops it and the wrapper with it, fg continues both. That would be wrong
// where our group is not ours alone, in a pipeline (lockersh make | less) or in a
// script: less would lose the terminal, and Ctrl-C would end the command but not
// the script. There the command stays in our group, the kernel delivers the
// terminal's signals to all of it as it would without us, and only signals that
// were sent to us alone are passed on.
//
// # The gate
//
// What is held may be held by the command's process, which then has to exist before
// the command may run. [Prepare] makes it, and it waits; [Job.Open] lets it execute
// the command. The program that uses this package calls [AtGate] first in main.
//
// # The end
//
// We are the subreaper of what the command leaves behind (prctl(2),
// PR_SET_CHILD_SUBREAPER), so every descendant can be found as long as we live,
// whatever session or group it has moved to. And should we be killed, the kernel
// kills the command (PR_SET_PDEATHSIG).
//
// Invariants: the wrapper's own process group is never signalled. A process is
// signalled only while it is certain to be the command or a descendant. A Job's
// goroutines have ended when Done is closed, unless Exit.Left is not 0.
//
// Nothing is executed before Open, nor after our death.
//
// A process runs one Job at a time, and waits for no other children meanwhile:
// the Job reaps whatever there is.
package job
