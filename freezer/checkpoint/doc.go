// Package checkpoint writes running processes to a file, and starts them from it again.
//
//	report, err := checkpoint.Checkpoint(ctx, checkpoint.Order{
//		Target: checkpoint.Tree(4711), File: "/var/jobs/render.ckpt"})
//	...
//	job, err := checkpoint.Restart(ctx, checkpoint.Plan{File: "/var/jobs/render.ckpt"})
//	status, err := job.Wait()
//
// The program calls [AtStage] first in main. CRIU (https://criu.org) does what needs the
// kernel; this package makes one safe file of the directory of images that it writes, and
// gives the restart the rules of cr_restart(1) of Berkeley Lab Checkpoint/Restart.
//
// # The file
//
// A context file is a tar archive, or one compressed with zstd. Its first member is the
// manifest ([Manifest]): what was checkpointed, where and when, and of every other
// member the size and the CRC-32C. The others are CRIU's images. It can be written to and
// read from a pipe.
//
// CRIU's images and the file in the making are in a private directory beside FILE, so
// there has to be room for the processes' memory twice. When everything is on the disk the
// file gets its name, and then its directory is brought to the disk too.
//
// # What becomes of the processes
//
// If they are to run on, CRIU lets them as soon as it has their images, and the rest is
// done behind their backs. If they are to be stopped, ended or signalled, they are held until
// the file is safe. They are held by ptrace(2), never by SIGSTOP: the kernel lets go of
// them when CRIU is killed, and CRIU does when the one who asked for the checkpoint
// ends, because a lock of that one opens then (see [Checkpoint] and keeper.go).
//
// CRIU's parent is a shell, the keeper, in a session of its own: it removes the private
// directory if nobody else is left to do it. If the keeper is killed too, the next
// checkpoint into that directory does.
//
// # Restart
//
// Every member is read and compared with the manifest before CRIU is started. By
// default the eldest process is a child of ours, has the number that it had, and is of our
// session and process group. Where that is to be otherwise a process of this program
// stands between the two (see stage.go): the first of a new pid namespace, or the
// leader of the session or group that was outside of what was checkpointed.
//
// # Invariants
//
// A context file is whole, or is not there. A checkpoint that fails, or is killed at any
// moment, leaves the processes as they were: nobody that ran stands still. What has been
// cut off or altered in any member is not restarted, and the error names the member. An
// [Error] has the class that tells what would have to be different: the arguments, the
// time, the file or the host.
//
// Contents of files are not saved: they are opened again by their names. Process
// numbers are those of our pid namespace. Everything here takes root.
//
// A restart does what the file says, as root: one that others could have written is not
// restarted, unless [Plan].Trusted says so (see [Trust]). The sums tell of damage, not of
// malice.
package checkpoint
