// Package executor carries out on this host what a cluster orders of checkpoints: the
// actions [ActionCheckpoint] and [ActionRestart].
//
// # A checkpoint
//
// It names a process, or the lock that one holds. If the lock is to be suspended, that is
// done when the file is whole, and before the job is ended, which stands still in between:
// so a lock is suspended only if there is a file. If the table refuses, the job runs on, and
// the file is removed. If the table does not answer before the order ends, the job runs on
// and the file stays; should the answer be that the lock was suspended, the job is ended
// then.
//
// When nothing of the job runs any more, the table is told, and only from then on another
// one can get the lock. If this program is killed in between, the job runs on, alone with
// its lock, until the next one ends it ([Executor.Recover]).
//
// A job that has another hold too is refused, as it would lose that: also if that is of a
// lockersh which runs nothing but the lockersh of this one.
//
// # A restart
//
// The job is restored, and stands still. Then its lock is asked for by the fence with which
// it was suspended, and by the id of the file for which it was, for the job's eldest process,
// and only if that is granted does it run: of two who restart one file, one gets the lock,
// and the other's job has never run. When it does run, the table is told. If it ends before,
// as this program was killed or the order has ended, the table takes the lock back, and
// keeps it for the file as before. If this program is killed when it has let the job run,
// and has not told the table, the next one does.
//
// The job's parent is a process of this program in a session of its own, which outlives the
// one that has made it ([AtParent]). The hold does not depend on it: it ends with the job. If
// it is killed before the job is let run, what is in its session is ended, as CRIU and the
// job would be left there.
package executor
