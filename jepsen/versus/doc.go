// Package versus puts lockersh beside "etcdctl lock", in two tests that both can
// take: it runs a cluster of either, on the same machine and the same disk, one
// after the other, and uses nothing of them but their programs.
//
// [Counter] lets many processes add 1 to a number in a file, under the lock, and
// counts the additions that got lost. Some holders are stopped between their read
// and their write, for longer than any lease, and go on afterwards: the command and
// its lock client together, as a virtual machine that is moved, the lid of a laptop,
// a frozen cgroup or SIGSTOP to a job stop them. Where only the command stops, the
// lock client keeps its lease alive, and nothing happens with either system.
//
// [Death] kills holders, and takes the time until the next one's command runs.
//
// Invariants: everything runs in one process number namespace and one network
// namespace that end with this process. All times are of CLOCK_MONOTONIC, taken just
// before the signal is sent and first thing in the next one's command. A test that
// saw nothing, or could not have seen anything, has not passed.
package versus
