/* A disk that fails on order, for LD_PRELOAD: calls that change files below $FAILING_DISK are counted, and those
 * whose turn it is fail. What a failed fsync was to keep is gone after a power cut even if a later fsync
 * succeeds, as on Linux: `disk_lose` takes it back, except where it was written again.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SHORT = -1 }; /* instead of an error number: half of a write is done, and says so */

struct undo {
    struct undo *older;
    dev_t dev;
    ino_t ino;
    off_t at;
    size_t n;
    int lost;
    char path[512];
    char *old, *again; /* bytes before; which were written again after they were lost */
};

static struct undo *newest;
static long n_calls, first_failing, n_failing;
static int failure;
static char failed[600];

/* --- what the bench asks for */
void disk_fail(long first, long n, int error) { n_calls = 0; first_failing = first; n_failing = n; failure = error; failed[0] = 0; }
void disk_heal(void) { n_failing = 0; }
const char *disk_failed(void) { return failed; }

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static int path_of(int fd, char *path, size_t n) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t got = readlink(link, path, n - 1);
    if (got < 0) return 0;
    path[got] = 0;
    return 1;
}

static int ours(const char *path) {
    const char *root = getenv("FAILING_DISK");
    return root && !strncmp(path, root, strlen(root));
}

/* Whether this call is to fail: an error number, SHORT, or 0. */
static int turn(const char *call, const char *path) {
    if (!ours(path)) return 0;
    long now = ++n_calls;
    if (now < first_failing || now >= first_failing + n_failing) return 0;
    if (failure == SHORT && !strstr(call, "write")) return 0;
    if (failure == ENOSPC && !strcmp(call, "unlink")) return 0; /* needs no room */
    if (!failed[0]) snprintf(failed, sizeof failed, "%s %s", call, strrchr(path, '/') + 1);
    return failure;
}

static int turn_fd(const char *call, int fd) {
    char path[512];
    return path_of(fd, path, sizeof path) ? turn(call, path) : 0;
}

static void note_write(int fd, size_t n, off_t at) {
    struct stat is;
    struct undo *u = calloc(1, sizeof *u);
    if (!path_of(fd, u->path, sizeof u->path) || !ours(u->path) || fstat(fd, &is)) { free(u); return; }
    u->dev = is.st_dev; u->ino = is.st_ino; u->at = at; u->n = n;
    u->old = calloc(1, n); u->again = calloc(1, n);
    int readable = open(u->path, O_RDONLY);
    if (readable >= 0) { if (pread(readable, u->old, n, at) < 0) u->n = 0; close(readable); }
    for (struct undo *o = newest; o; o = o->older) {
        if (o->dev != u->dev || o->ino != u->ino) continue;
        for (size_t k = 0; k < o->n; k++)
            if (o->at + (off_t)k >= at && o->at + k < at + n) o->again[k] = 1;
    }
    u->older = newest; newest = u;
}

static void drop(int all, dev_t dev, ino_t ino) {
    for (struct undo **p = &newest; *p;) {
        struct undo *u = *p;
        if (all || (!u->lost && u->dev == dev && u->ino == ino)) {
            *p = u->older; free(u->old); free(u->again); free(u);
        } else p = &u->older;
    }
}

static void synced(int fd, int well) {
    struct stat is;
    if (fstat(fd, &is)) return;
    if (well) { drop(0, is.st_dev, is.st_ino); return; }
    for (struct undo *u = newest; u; u = u->older)
        if (u->dev == is.st_dev && u->ino == is.st_ino) u->lost = 1;
}

/* The power cut: what a failed fsync was to keep is as it was. */
void disk_lose(void) {
    REAL(pwrite);
    for (struct undo *u = newest; u; u = u->older) {
        struct stat is;
        int fd = u->lost ? open(u->path, O_WRONLY) : -1;
        if (fd < 0) continue;
        if (!fstat(fd, &is) && is.st_ino == u->ino)
            for (size_t k = 0; k < u->n && u->at + (off_t)k < is.st_size; k++)
                if (!u->again[k] && real(fd, u->old + k, 1, u->at + k) != 1) break;
        close(fd);
    }
    drop(1, 0, 0);
}

#define FAIL_OR(call, value) int e = call; if (e > 0) { errno = e; return value; }

ssize_t write(int fd, const void *from, size_t n) {
    REAL(write);
    FAIL_OR(turn_fd("write", fd), -1)
    if (e == SHORT && n > 1) n /= 2;
    note_write(fd, n, lseek(fd, 0, SEEK_CUR));
    return real(fd, from, n);
}
ssize_t pwrite(int fd, const void *from, size_t n, off_t at) {
    REAL(pwrite);
    FAIL_OR(turn_fd("pwrite", fd), -1)
    if (e == SHORT && n > 1) n /= 2;
    note_write(fd, n, at);
    return real(fd, from, n, at);
}
ssize_t pwrite64(int fd, const void *from, size_t n, off64_t at) { return pwrite(fd, from, n, at); }

static int sync_as(int fd, const char *call, int (*real)(int)) {
    FAIL_OR(turn_fd(call, fd), (synced(fd, 0), -1))
    int is = real(fd);
    synced(fd, is == 0);
    return is;
}
int fsync(int fd) { REAL(fsync); return sync_as(fd, "fsync", real); }
int fdatasync(int fd) { REAL(fdatasync); return sync_as(fd, "fdatasync", real); }

int ftruncate(int fd, off_t n) { REAL(ftruncate); FAIL_OR(turn_fd("ftruncate", fd), -1) return real(fd, n); }
int ftruncate64(int fd, off64_t n) { return ftruncate(fd, n); }
int rename(const char *from, const char *to) { REAL(rename); FAIL_OR(turn("rename", to), -1) return real(from, to); }
int renameat(int a, const char *from, int b, const char *to) {
    REAL(renameat); FAIL_OR(turn("renameat", to), -1) return real(a, from, b, to);
}
int unlink(const char *path) { REAL(unlink); FAIL_OR(turn("unlink", path), -1) return real(path); }

static int making(const char *path, int flags) { return flags & (O_CREAT | O_TRUNC) ? turn("open", path) : 0; }
#define MODE int mode = 0; if (flags & O_CREAT) { va_list more; va_start(more, flags); mode = va_arg(more, int); va_end(more); }
int open(const char *path, int flags, ...) { MODE REAL(open); FAIL_OR(making(path, flags), -1) return real(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE REAL(open64); FAIL_OR(making(path, flags), -1) return real(path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE REAL(openat); FAIL_OR(making(path, flags), -1) return real(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE REAL(openat64); FAIL_OR(making(path, flags), -1) return real(at, path, flags, mode); }
