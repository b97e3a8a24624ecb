/* A program that has itself checkpointed, by the protocol of package checkpoint/self.
 *
 *     cc -o count docs/examples/checkpoint.c
 *     lockersh --checkpointable --lock count -- ./count /var/jobs/count.ckpt
 *
 * It counts, checkpoints itself at 3, and counts on to 6, as does each restart of it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* read_line reads a line of at most size-1 bytes, without its end. 0 is success. */
static int read_line(int fd, char *line, size_t size)
{
	size_t n = 0;

	while (n < size - 1) {
		ssize_t got = read(fd, line + n, 1);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return -1;
		if (line[n] == '\n') {
			line[n] = 0;
			return 0;
		}
		n++;
	}
	return -1;
}

/* checkpoint saves the job that we are of in a file, whose path is absolute. It returns 0
 * when the file is there, 1 in what was restarted from it, and -1 with errno if there is
 * none. With leave, the job is killed when the file is there.
 */
static int checkpoint(const char *path, int leave)
{
	const char *server = getenv("LOCKERD_CHECKPOINT_SOCKET");
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	char line[4200];
	int answer[2], sock, n, result = -1, error = EIO;

	if (!server || strlen(server) >= sizeof addr.sun_path || strlen(path) > 4095) {
		errno = server ? ENAMETOOLONG : ENOENT;
		return -1;
	}
	strcpy(addr.sun_path, server);
	if (pipe(answer))
		return -1;
	sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	n = snprintf(line, sizeof line, "ckpt %s%d %s\n", leave ? "exit " : "", answer[1], path);
	if (sock < 0 || connect(sock, (struct sockaddr *)&addr, sizeof addr) || send(sock, line, n, MSG_NOSIGNAL) != n) {
		error = errno;
	} else if (read_line(sock, line, sizeof line) == 0) {
		close(sock); /* nothing is saved before */
		sock = -1;
		/* Both ends stay open until there is an answer. */
		if (strcmp(line, "ok") == 0 && read_line(answer[0], line, sizeof line))
			line[0] = 0;
		if (strcmp(line, "running") == 0)
			result = 0;
		else if (strncmp(line, "restored ", 9) == 0)
			result = 1;
		else if (sscanf(line, "failed %d", &error) != 1)
			error = EPROTO;
	}
	if (sock >= 0)
		close(sock);
	close(answer[0]);
	close(answer[1]);
	errno = error;
	return result;
}

int main(int argc, char **argv)
{
	if (argc != 2) {
		fprintf(stderr, "usage: %s FILE\n", argv[0]);
		return 2;
	}
	for (int i = 1; i <= 6; i++) {
		printf("%d\n", i);
		fflush(stdout);
		if (i != 3)
			continue;
		switch (checkpoint(argv[1], 0)) {
		case 0:
			puts("saved");
			break;
		case 1:
			puts("restarted");
			break;
		default:
			perror("checkpoint");
			return 1;
		}
	}
	return 0;
}
