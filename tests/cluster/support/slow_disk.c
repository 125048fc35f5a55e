/* Preloaded into a node: each fsync and fdatasync takes as many milliseconds longer as the file
 * says that SLOW_DISK names. It is read at each, so that a disk can become slow, and well again. */

#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void wait_for_the_disk(void) {
    const char *path = getenv("SLOW_DISK");
    FILE *file = path ? fopen(path, "r") : NULL;
    long millis = 0;
    if (file) {
        if (fscanf(file, "%ld", &millis) != 1) millis = 0;
        fclose(file);
    }
    struct timespec span = {millis / 1000, millis % 1000 * 1000000};
    nanosleep(&span, NULL);
}

int fsync(int fd) {
    wait_for_the_disk();
    return syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    wait_for_the_disk();
    return syscall(SYS_fdatasync, fd);
}
