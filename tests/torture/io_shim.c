/* Breaks the disk below one folder, for the tests of bulk jobs: LD_PRELOAD, Linux.
 *
 * It stands between the program (Python, SQLite, any C library) and the system calls that change files. For each one
 * that concerns the folder, it asks the program (`choose`), and where the answer is yes it
 *
 *     FAIL    lets it fail with an errno
 *     SHORT   writes only half of what it was given
 *     KILL    kills the process before it is made
 *     CUT     cuts the power before it is made: all that was not synced is undone, then the process is killed
 *     LOSE    (a sync) fails with EIO, and what was to be synced is gone, although the next sync succeeds
 *
 * What is not synced: data whose file, and names whose folder, have not been synced since. With a seed, CUT keeps some
 * of it, as a real disk does: each write is kept, torn in the middle or lost, and of the names the older ones are kept.
 * Undoing needs the old bytes of what is overwritten, and links to what is unlinked; those are kept in a folder of
 * their own, the grave.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum action { FAIL = 1, SHORT, KILL, CUT, LOSE };
enum kind { CREATE = 1, WRITE = 2, SYNC = 4, RENAME = 8, TRUNCATE = 16, UNLINK = 32, MKDIR = 64, RMDIR = 128 };

typedef struct change {
    struct change *older;
    enum kind kind;
    dev_t device;            /* of the file that was written or truncated */
    ino_t inode;
    int file;                /* to write it with */
    off_t at;                /* of the old bytes */
    size_t length, kept;     /* of the new bytes; of the old bytes below */
    off_t size;              /* of the file before */
    char *old;
    char *path, *to;         /* of a name */
    char *saved;             /* a link to what had the name before */
} Change;

typedef int Choose(int kind, const char *path);

static struct {
    enum action action;
    int error;
    unsigned long seed;
    Choose *choose;
    char folder[PATH_MAX], grave[PATH_MAX];
} plan;

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static unsigned long buried;
static Change *newest;

void io_shim_arm(const char *folder, const char *grave, int action, int error, unsigned long seed, Choose *choose) {
    plan.action = action, plan.error = error, plan.seed = seed, plan.choose = choose;
    snprintf(plan.grave, sizeof plan.grave, "%s", grave);
    buried = 0, newest = NULL;
    snprintf(plan.folder, sizeof plan.folder, "%s", folder);
}

/* --- paths ------------------------------------------------------------------------------------------------------- */

static int path_of(int file, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return length > 0;
}

static void resolve(int folder, const char *name, char *path) {
    char base[PATH_MAX] = "";
    if (name[0] != '/') {
        if (folder == AT_FDCWD ? !getcwd(base, sizeof base) : !path_of(folder, base)) base[0] = 0;
        strncat(base, "/", sizeof base - strlen(base) - 1);
    }
    if (snprintf(path, PATH_MAX, "%s%s", base, name) >= PATH_MAX) abort();
}

static int ours(const char *path) {
    size_t length = strlen(plan.folder);
    return length && !strncmp(path, plan.folder, length) && (!path[length] || path[length] == '/');
}

static int is_parent(const char *folder, const char *path) {
    size_t length = strlen(folder);
    return !strncmp(folder, path, length) && path[length] == '/' && !strchr(path + length + 1, '/');
}

static int exists(const char *path) {
    struct stat about;
    return !lstat(path, &about);
}

/* --- what can be undone ------------------------------------------------------------------------------------------ */

static int keeps_track(void) { return plan.action == CUT || plan.action == LOSE; }

static Change *note(enum kind kind) {
    Change *change = calloc(1, sizeof *change);
    if (!change) abort();
    change->kind = kind, change->older = newest;
    return newest = change;
}

static void note_name(enum kind kind, const char *path, const char *to) {
    Change *change = note(kind);
    const char *covered = kind == RENAME ? to : path;
    change->path = strdup(path);
    change->to = to ? strdup(to) : NULL;
    if ((kind == UNLINK || kind == RENAME) && exists(covered)) {
        char saved[PATH_MAX + 32];
        snprintf(saved, sizeof saved, "%s/%d-%lu", plan.grave, getpid(), buried++);
        if (syscall(SYS_linkat, AT_FDCWD, covered, AT_FDCWD, saved, 0)) abort();
        change->saved = strdup(saved);
    }
}

/* The bytes of a file from `at` on are about to change: `length` of them, or with length 0 all until the end. */
static void note_data(enum kind kind, int file, off_t at, size_t length) {
    char link[64];
    struct stat about;
    if (fstat(file, &about) || !S_ISREG(about.st_mode)) return;
    Change *change = note(kind);
    change->device = about.st_dev, change->inode = about.st_ino;
    change->at = at, change->length = length, change->size = about.st_size;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    change->file = syscall(SYS_openat, AT_FDCWD, link, O_RDWR | O_CLOEXEC, 0);
    if (change->file < 0) abort();
    if (at < about.st_size) {
        off_t rest = about.st_size - at;
        change->kept = kind == WRITE && rest > (off_t)length ? length : (size_t)rest;
        change->old = malloc(change->kept);
        if (pread(change->file, change->old, change->kept, at) != (ssize_t)change->kept) abort();
    }
}

static void put(int file, const char *bytes, size_t length, off_t at) {
    while (length) {
        ssize_t done = syscall(SYS_pwrite64, file, bytes, length, at);
        if (done <= 0) abort();
        bytes += done, length -= (size_t)done, at += done;
    }
}

static void undo_data(Change *change, size_t from, int shrink) {
    struct stat now;
    size_t end = change->kind == WRITE ? change->length : change->kept;
    char zero[4096] = "";
    if (from < change->kept) put(change->file, change->old + from, change->kept - from, change->at + (off_t)from);
    if (shrink && !syscall(SYS_ftruncate, change->file, change->size)) return;
    if (fstat(change->file, &now)) abort();
    for (off_t at = change->at + (off_t)(from > change->kept ? from : change->kept);
         at < change->at + (off_t)end && at < now.st_size; at += sizeof zero) {
        off_t last = change->at + (off_t)end < now.st_size ? change->at + (off_t)end : now.st_size;
        put(change->file, zero, last - at < (off_t)sizeof zero ? (size_t)(last - at) : sizeof zero, at);
    }
}

static void move(const char *from, const char *to) { syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0); }

static void undo_name(Change *change) {
    char away[PATH_MAX + 32];
    switch (change->kind) {
    case CREATE: syscall(SYS_unlinkat, AT_FDCWD, change->path, 0); break;
    case UNLINK: if (change->saved) move(change->saved, change->path); break;
    case RMDIR: syscall(SYS_mkdirat, AT_FDCWD, change->path, 0700); break;
    case MKDIR: /* with all that is in it, since nothing leads to it any more */
        snprintf(away, sizeof away, "%s/%d-%lu", plan.grave, getpid(), buried++);
        move(change->path, away);
        break;
    case RENAME:
        move(change->to, change->path);
        if (change->saved) move(change->saved, change->to);
        break;
    default: break;
    }
}

static int is_data(const Change *change) { return change->kind == WRITE || change->kind == TRUNCATE; }

/* What a sync of a file or folder makes durable is not undone any more. With `lose`, it is undone now. */
static void settle(int file, int lose) {
    struct stat about;
    char path[PATH_MAX];
    if (fstat(file, &about) || !path_of(file, path)) return;
    for (Change **link = &newest; *link;) {
        Change *change = *link;
        int same = is_data(change)
            ? change->device == about.st_dev && change->inode == about.st_ino
            : S_ISDIR(about.st_mode) && is_parent(path, change->kind == RENAME ? change->to : change->path);
        if (!same) {
            link = &change->older;
            continue;
        }
        if (lose && is_data(change)) undo_data(change, 0, 0);
        if (change->saved) syscall(SYS_unlinkat, AT_FDCWD, change->saved, 0);
        if (is_data(change)) close(change->file);
        *link = change->older;
        free(change->old), free(change->path), free(change->to), free(change->saved), free(change);
    }
}

static unsigned long dice(unsigned long sides) {
    plan.seed = plan.seed * 6364136223846793005UL + 1442695040888963407UL;
    return (plan.seed >> 33) % sides;
}

static void cut_the_power(void) {
    int random = plan.seed != 0;
    unsigned long names = 0, lost_names;
    for (Change *change = newest; change; change = change->older) names += !is_data(change);
    lost_names = random ? dice(names + 1) : names;
    for (Change *change = newest; change; change = change->older) {
        if (!is_data(change)) {
            if (lost_names) lost_names--, undo_name(change);
            continue;
        }
        unsigned long fate = random ? dice(3) : 0; /* lost, torn, kept */
        if (fate < 2) undo_data(change, fate ? change->length / 2 : 0, !random);
    }
    kill(getpid(), SIGKILL);
}

/* --- the moment -------------------------------------------------------------------------------------------------- */

/* Called without the lock, because the answer comes from Python: its thread may have to wait for the GIL. */
static int chosen(enum kind kind, const char *path) {
    int before = errno, yes = plan.choose(kind, path);
    errno = before;
    return yes;
}

/* Whether a chosen call is to fail; errno is set. */
static int fails(int yes, int file) {
    if (!yes || plan.action == SHORT) return 0;
    if (plan.action == KILL) kill(getpid(), SIGKILL);
    if (plan.action == CUT) cut_the_power();
    if (plan.action == LOSE) settle(file, 1);
    errno = plan.error;
    return 1;
}

#define TURN pthread_mutex_lock(&turn)
#define DONE(result) do { long made = (result); pthread_mutex_unlock(&turn); return made; } while (0)

/* --- the calls --------------------------------------------------------------------------------------------------- */

static long open_at(int folder, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    int changes = flags & (O_CREAT | O_TRUNC);
    if (!*plan.folder || !changes || (flags & O_TMPFILE) == O_TMPFILE || (resolve(folder, name, path), !ours(path)))
        return syscall(SYS_openat, folder, name, flags, mode);
    int there = exists(path), yes = (!there || flags & O_TRUNC) && chosen(CREATE, path);
    TURN;
    if (fails(yes, -1)) DONE(-1);
    if (keeps_track() && there && flags & O_TRUNC) {
        int file = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
        if (file >= 0) note_data(TRUNCATE, file, 0, 0), close(file);
    }
    long file = syscall(SYS_openat, folder, name, flags, mode);
    if (keeps_track() && file >= 0 && !there) note_name(CREATE, path, NULL);
    DONE(file);
}

#define MODE ({ mode_t mode = 0; if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) { va_list rest; va_start(rest, flags); \
    mode = va_arg(rest, mode_t); va_end(rest); } mode; })

int open(const char *name, int flags, ...) { return (int)open_at(AT_FDCWD, name, flags, MODE); }
int open64(const char *name, int flags, ...) { return (int)open_at(AT_FDCWD, name, flags, MODE); }
int openat(int folder, const char *name, int flags, ...) { return (int)open_at(folder, name, flags, MODE); }
int openat64(int folder, const char *name, int flags, ...) { return (int)open_at(folder, name, flags, MODE); }
int creat(const char *name, mode_t mode) { return (int)open_at(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode); }

static int file_is_ours(int file, char *path) {
    int before = errno, found = *plan.folder && path_of(file, path) && ours(path);
    errno = before;
    return found;
}

/* `at` of -1: where the file stands. */
static ssize_t write_at(int file, const void *bytes, size_t length, off_t at) {
    char path[PATH_MAX];
    off_t place = at;
    if (file_is_ours(file, path)) {
        int yes = (plan.action != SHORT || length > 1) && chosen(WRITE, path);
        TURN;
        if (fails(yes, file)) DONE(-1);
        if (yes && plan.action == SHORT) length /= 2;
        if (at < 0) {
            struct stat about;
            int appends = fcntl(file, F_GETFL) & O_APPEND;
            place = appends && !fstat(file, &about) ? about.st_size : lseek(file, 0, SEEK_CUR);
        }
        if (keeps_track() && place >= 0) note_data(WRITE, file, place, length);
        DONE(at < 0 ? syscall(SYS_write, file, bytes, length) : syscall(SYS_pwrite64, file, bytes, length, at));
    }
    return at < 0 ? syscall(SYS_write, file, bytes, length) : syscall(SYS_pwrite64, file, bytes, length, at);
}

ssize_t write(int file, const void *bytes, size_t length) { return write_at(file, bytes, length, -1); }
ssize_t pwrite(int file, const void *bytes, size_t length, off_t at) { return write_at(file, bytes, length, at); }
ssize_t pwrite64(int file, const void *bytes, size_t length, off64_t at) { return write_at(file, bytes, length, at); }

/* A vector is written piece by piece: callers must handle a partial write. */
static ssize_t write_vector(int file, const struct iovec *pieces, int count, off_t at) {
    char path[PATH_MAX];
    if (!file_is_ours(file, path))
        return at < 0 ? syscall(SYS_writev, file, pieces, count)
                      : syscall(SYS_pwritev, file, pieces, count, at, (long)((unsigned long)at >> 32 >> 32));
    while (count > 1 && !pieces->iov_len) pieces++, count--;
    return count < 1 ? 0 : write_at(file, pieces->iov_base, pieces->iov_len, at);
}

ssize_t writev(int file, const struct iovec *pieces, int count) { return write_vector(file, pieces, count, -1); }
ssize_t pwritev(int file, const struct iovec *p, int count, off_t at) { return write_vector(file, p, count, at); }
ssize_t pwritev64(int file, const struct iovec *p, int count, off64_t at) { return write_vector(file, p, count, at); }

static int sync_file(int file, int data_only) {
    char path[PATH_MAX];
    long call = data_only ? SYS_fdatasync : SYS_fsync;
    if (!file_is_ours(file, path)) return (int)syscall(call, file);
    int yes = chosen(SYNC, path);
    TURN;
    if (fails(yes, file)) DONE(-1);
    long made = syscall(call, file);
    if (!made && keeps_track()) settle(file, 0);
    DONE(made);
}

int fsync(int file) { return sync_file(file, 0); }
int fdatasync(int file) { return sync_file(file, 1); }

static int cut_to(int file, off_t size) {
    char path[PATH_MAX];
    if (!file_is_ours(file, path)) return (int)syscall(SYS_ftruncate, file, size);
    int yes = chosen(TRUNCATE, path);
    TURN;
    if (fails(yes, file)) DONE(-1);
    if (keeps_track()) note_data(TRUNCATE, file, size, 0);
    DONE(syscall(SYS_ftruncate, file, size));
}

int ftruncate(int file, off_t size) { return cut_to(file, size); }
int ftruncate64(int file, off64_t size) { return cut_to(file, size); }

static int rename_at(int folder, const char *name, int to_folder, const char *to_name, unsigned flags) {
    char path[PATH_MAX], to[PATH_MAX];
    if (!*plan.folder || (resolve(folder, name, path), resolve(to_folder, to_name, to), !ours(to) && !ours(path)))
        return (int)syscall(SYS_renameat2, folder, name, to_folder, to_name, flags);
    int yes = chosen(RENAME, to);
    TURN;
    if (fails(yes, -1)) DONE(-1);
    if (keeps_track() && exists(path)) note_name(RENAME, path, to);
    DONE(syscall(SYS_renameat2, folder, name, to_folder, to_name, flags));
}

int rename(const char *name, const char *to) { return rename_at(AT_FDCWD, name, AT_FDCWD, to, 0); }
int renameat(int folder, const char *name, int to_folder, const char *to) {
    return rename_at(folder, name, to_folder, to, 0);
}
int renameat2(int folder, const char *name, int to_folder, const char *to, unsigned flags) {
    return rename_at(folder, name, to_folder, to, flags);
}

static int remove_at(int folder, const char *name, int flags) {
    char path[PATH_MAX];
    enum kind kind = flags & AT_REMOVEDIR ? RMDIR : UNLINK;
    if (!*plan.folder || (resolve(folder, name, path), !ours(path)))
        return (int)syscall(SYS_unlinkat, folder, name, flags);
    int yes = chosen(kind, path);
    TURN;
    if (fails(yes, -1)) DONE(-1);
    if (keeps_track() && exists(path) && kind == UNLINK) note_name(kind, path, NULL);
    long made = syscall(SYS_unlinkat, folder, name, flags);
    if (keeps_track() && !made && kind == RMDIR) note_name(kind, path, NULL);
    DONE(made);
}

int unlink(const char *name) { return remove_at(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return remove_at(AT_FDCWD, name, AT_REMOVEDIR); }
int unlinkat(int folder, const char *name, int flags) { return remove_at(folder, name, flags); }

static int make_folder(int folder, const char *name, mode_t mode) {
    char path[PATH_MAX];
    if (!*plan.folder || (resolve(folder, name, path), !ours(path)) || exists(path))
        return (int)syscall(SYS_mkdirat, folder, name, mode);
    int yes = chosen(MKDIR, path);
    TURN;
    if (fails(yes, -1)) DONE(-1);
    long made = syscall(SYS_mkdirat, folder, name, mode);
    if (keeps_track() && !made) note_name(MKDIR, path, NULL);
    DONE(made);
}

int mkdir(const char *name, mode_t mode) { return make_folder(AT_FDCWD, name, mode); }
int mkdirat(int folder, const char *name, mode_t mode) { return make_folder(folder, name, mode); }
