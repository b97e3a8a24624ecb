#!/bin/sh
# steps.sh JOURNAL STEPS [SECONDS]
#
# A batch job that keeps a journal: it computes STEPS numbers, each from the one before,
# and appends them to JOURNAL, which hosts share, each step once, whatever becomes of the
# hosts. A line is "FENCE STEP RESULT HOST". It is run by
#
#	lockersh --lock steps --checkpoint DIR --checkpoint-every 5m -- steps.sh JOURNAL 100 >>LOG 2>&1
#
# Four rules make it safe.
#
# The journal decides what is done: a job that goes on from a checkpoint computes the steps
# again that came after it, and records none that is there already.
#
# The fence is read from the file, for the one in the environment is that of the hold in
# which the job was started. The last fence in the journal is the highest that has
# written: whoever has a lower one has been replaced, and ends.
#
# There is no checkpoint between the look at fence and journal and the record, because that
# file is locked meanwhile. A job that went on from there would record the step again.
#
# What is read, and may change while the job is on disk, is open for writing too (<>): CRIU
# does not restore a process that has a changed file open for reading alone.
journal=$1 steps=$2 pause=${3:-0}

# record STEP RESULT
record() {
	{
		flock 9 || exit
		read -r fence <&9 || exit
		while read -r f s r host; do
			if [ "$f" -gt "$fence" ]; then
				echo "steps.sh: replaced by the holder of fence $f, ours is $fence" >&2
				exit 1
			fi
			if [ "$s" -eq "$1" ]; then
				[ "$r" -eq "$2" ] && return
				echo "steps.sh: step $1 is $r in the journal, and not $2" >&2
				exit 1
			fi
		done <>"$journal"
		# One write(2), so it is there as a whole or not at all, and on the disk before the
		# next step begins.
		printf '%d %d %d %s\n' "$fence" "$1" "$2" "$(uname -n)" |
			dd of="$journal" bs=4k oflag=append conv=notrunc,fsync status=none || exit
	} 9<"$LOCKERSH_FENCE_FILE"
}

step=0 result=1
while [ "$step" -lt "$steps" ]; do
	step=$((step + 1))
	result=$(((result * 48271 + step) % 2147483647))
	sleep "$pause"
	record "$step" "$result"
done
