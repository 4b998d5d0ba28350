/* Preloaded library: lets the n-th call of libc about files below one folder fail. tools/faults.py compiles and drives it.

It stands before libc's functions, so it sees the calls of Python, of safetensors (Rust) and of torch (C++) alike. Until
`faults_arm` is called, and for files elsewhere, every call goes through. A descriptor counts as below the folder if
it was opened there; `faults_watch` adds one that was not, such as that of stdout. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN, CREATE, READ, WRITE, FLUSH, NAME, REMOVE, STAT, LIST, LOCK, MAP, CHANGE, CLOSE, KINDS };
#define DESCRIPTORS 65536

static struct {
    atomic_long calls[KINDS];
    atomic_long seen; /* calls of the kinds that may fail */
    atomic_long failed;
    char what[PATH_MAX + 64]; /* the first call that failed */
} *shared;

static char folder[PATH_MAX];
static size_t folder_length;
static int armed, mask, error_number, for_good;
static long failing;
static unsigned char below[DESCRIPTORS]; /* 0, or 1 for one to read, 2 for one to write */

/* Shares the counters with children that are forked later. Returns 0, or -1. */
int faults_share(void) {
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return shared == MAP_FAILED ? -1 : 0;
}

/* From here on, counts calls about files in `path`. The n-th one of the kinds in `kinds` fails (n = 0: none does). */
void faults_arm(const char *path, long n, int kinds, int error, int good) {
    strncpy(folder, path, sizeof folder - 1);
    folder_length = strlen(folder);
    failing = n, mask = kinds, error_number = error, for_good = good;
    memset((void *)shared, 0, sizeof *shared);
    armed = 1;
}

void faults_disarm(void) { armed = 0; }
void faults_watch(int descriptor) { below[descriptor] = 2; }
long faults_calls(int kind) { return shared->calls[kind]; }
long faults_failed(void) { return shared->failed; }
const char *faults_what(void) { return shared->what; }

static int is_below(int descriptor) {
    return armed && descriptor >= 0 && descriptor < DESCRIPTORS ? below[descriptor] : 0;
}

static void mark(int descriptor, int how) {
    if (descriptor >= 0 && descriptor < DESCRIPTORS) below[descriptor] = how;
}

static int names(int directory, const char *path) {
    char current[PATH_MAX];
    if (!armed || path == NULL) return 0;
    if (path[0] != '/') {
        if (directory != AT_FDCWD) return is_below(directory);
        if (getcwd(current, sizeof current) == NULL) return 0;
        path = current;
    }
    return strncmp(path, folder, folder_length) == 0 && (path[folder_length] == '/' || path[folder_length] == 0);
}

/* Counts a call, and says whether it is to fail. */
static int fails(int kind, const char *call, const char *path, int descriptor) {
    shared->calls[kind]++;
    if (!(mask >> kind & 1)) return 0;
    long number = ++shared->seen;
    if (!failing || number < failing || (number > failing && !for_good)) return 0;
    if (shared->failed++ == 0) {
        char link[64], target[PATH_MAX] = "";
        if (path == NULL) {
            snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
            ssize_t (*follow)(const char *, char *, size_t) = dlsym(RTLD_NEXT, "readlink");
            if (follow(link, target, sizeof target - 1) > 0) path = target;
        }
        snprintf(shared->what, sizeof shared->what, "%s %s", call, path ? path : "?");
    }
    errno = error_number;
    return 1;
}

#define REAL(type, name, ...)                                   \
    static type (*real)(__VA_ARGS__);                           \
    if (real == NULL) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)
#define BY_PATH(kind, name, directory, path) \
    if (names(directory, path) && fails(kind, name, path, -1)) return -1
#define BY_DESCRIPTOR(kind, name, descriptor) \
    if (is_below(descriptor) && fails(kind, name, NULL, descriptor)) return -1

#define OPENS(name)                                                                         \
    int name(const char *path, int flags, ...) {                                            \
        va_list more;                                                                       \
        va_start(more, flags);                                                              \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;           \
        va_end(more);                                                                       \
        REAL(int, #name, const char *, int, ...);                                           \
        int watched = names(AT_FDCWD, path);                                                \
        if (watched && fails(flags & O_CREAT ? CREATE : OPEN, "open", path, -1)) return -1; \
        int descriptor = real(path, flags, mode);                                           \
        mark(descriptor, watched ? 1 + !!(flags & (O_WRONLY | O_RDWR)) : 0);                \
        return descriptor;                                                                  \
    }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name)                                                                      \
    int name(int directory, const char *path, int flags, ...) {                             \
        va_list more;                                                                       \
        va_start(more, flags);                                                              \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;           \
        va_end(more);                                                                       \
        REAL(int, #name, int, const char *, int, ...);                                      \
        int watched = names(directory, path);                                               \
        if (watched && fails(flags & O_CREAT ? CREATE : OPEN, "open", path, -1)) return -1; \
        int descriptor = real(directory, path, flags, mode);                                \
        mark(descriptor, watched ? 1 + !!(flags & (O_WRONLY | O_RDWR)) : 0);                \
        return descriptor;                                                                  \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

#define OPENS_STREAM(name)                                                                               \
    FILE *name(const char *path, const char *mode) {                                                     \
        REAL(FILE *, #name, const char *, const char *);                                                 \
        int watched = names(AT_FDCWD, path);                                                             \
        if (watched && fails(strchr("wa", mode[0]) ? CREATE : OPEN, "fopen", path, -1)) return NULL;     \
        FILE *stream = real(path, mode);                                                                 \
        if (stream != NULL) mark(fileno(stream), watched ? 1 + (mode[0] != 'r') : 0);                    \
        return stream;                                                                                   \
    }
OPENS_STREAM(fopen)
OPENS_STREAM(fopen64)

int close(int descriptor) {
    REAL(int, "close", int);
    int watched = is_below(descriptor);
    int fail = watched && fails(watched == 2 ? FLUSH : CLOSE, "close", NULL, descriptor);
    mark(descriptor, 0);
    int result = real(descriptor); /* Linux closes even where it reports an error */
    if (fail) errno = error_number;
    return fail ? -1 : result;
}

#define DUPLICATES(name, parameters, arguments, types)                \
    int name parameters {                                             \
        REAL(int, #name, types);                                      \
        int watched = is_below(old), descriptor = real arguments;     \
        mark(descriptor, watched);                                    \
        return descriptor;                                            \
    }
#define COMMA ,
DUPLICATES(dup, (int old), (old), int)
DUPLICATES(dup2, (int old, int new), (old, new), int COMMA int)
DUPLICATES(dup3, (int old, int new, int flags), (old, new, flags), int COMMA int COMMA int)

#define CONTROLS(name)                                                                                              \
    int name(int descriptor, int command, ...) {                                                                    \
        va_list more;                                                                                               \
        va_start(more, command);                                                                                    \
        void *argument = va_arg(more, void *);                                                                      \
        va_end(more);                                                                                               \
        REAL(int, #name, int, int, ...);                                                                            \
        if (command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW) {       \
            BY_DESCRIPTOR(LOCK, "fcntl", descriptor);                                                               \
        }                                                                                                           \
        int watched = is_below(descriptor), result = real(descriptor, command, argument);                           \
        if (command == F_DUPFD || command == F_DUPFD_CLOEXEC) mark(result, watched);                                \
        return result;                                                                                              \
    }
CONTROLS(fcntl)
CONTROLS(fcntl64)

#define ON_DESCRIPTOR(kind, type, name, parameters, arguments, types) \
    type name parameters {                                            \
        REAL(type, #name, types);                                     \
        BY_DESCRIPTOR(kind, #name, descriptor);                       \
        return real arguments;                                        \
    }
#define TRANSFER(kind, name, pointer)                                                                    \
    ON_DESCRIPTOR(kind, ssize_t, name, (int descriptor, pointer data, size_t size), (descriptor, data, size), \
                  int COMMA pointer COMMA size_t)
#define TRANSFER_AT(kind, name, pointer)                                                                  \
    ON_DESCRIPTOR(kind, ssize_t, name, (int descriptor, pointer data, size_t size, off64_t place),        \
                  (descriptor, data, size, place), int COMMA pointer COMMA size_t COMMA off64_t)
#define TRANSFER_PARTS(kind, name)                                                                             \
    ON_DESCRIPTOR(kind, ssize_t, name, (int descriptor, const struct iovec *parts, int count),                 \
                  (descriptor, parts, count), int COMMA const struct iovec * COMMA int)
TRANSFER(READ, read, void *)
TRANSFER(WRITE, write, const void *)
TRANSFER_AT(READ, pread, void *)
TRANSFER_AT(READ, pread64, void *)
TRANSFER_AT(WRITE, pwrite, const void *)
TRANSFER_AT(WRITE, pwrite64, const void *)
TRANSFER_PARTS(READ, readv)
TRANSFER_PARTS(WRITE, writev)
ON_DESCRIPTOR(FLUSH, int, fsync, (int descriptor), (descriptor), int)
ON_DESCRIPTOR(FLUSH, int, fdatasync, (int descriptor), (descriptor), int)
ON_DESCRIPTOR(LOCK, int, flock, (int descriptor, int operation), (descriptor, operation), int COMMA int)
ON_DESCRIPTOR(CHANGE, int, ftruncate, (int descriptor, off64_t size), (descriptor, size), int COMMA off64_t)
ON_DESCRIPTOR(CHANGE, int, ftruncate64, (int descriptor, off64_t size), (descriptor, size), int COMMA off64_t)
ON_DESCRIPTOR(CHANGE, int, fchmod, (int descriptor, mode_t mode), (descriptor, mode), int COMMA mode_t)
ON_DESCRIPTOR(CHANGE, int, futimens, (int descriptor, const struct timespec times[2]), (descriptor, times),
              int COMMA const struct timespec *)
ON_DESCRIPTOR(STAT, int, fstat, (int descriptor, struct stat *found), (descriptor, found), int COMMA struct stat *)
ON_DESCRIPTOR(STAT, int, fstat64, (int descriptor, struct stat64 *found), (descriptor, found), int COMMA struct stat64 *)

#define SENDS(name, offset_type)                                                                    \
    ssize_t name(int to, int descriptor, offset_type *place, size_t size) {                         \
        REAL(ssize_t, #name, int, int, offset_type *, size_t);                                      \
        BY_DESCRIPTOR(READ, "sendfile", descriptor);                                                \
        return real(to, descriptor, place, size);                                                   \
    }
SENDS(sendfile, off_t)
SENDS(sendfile64, off64_t)

#define MAPS(name)                                                                                           \
    void *name(void *address, size_t size, int protection, int flags, int descriptor, off64_t place) {       \
        REAL(void *, #name, void *, size_t, int, int, int, off64_t);                                         \
        if (!(flags & MAP_ANONYMOUS) && is_below(descriptor) && fails(MAP, "mmap", NULL, descriptor))        \
            return MAP_FAILED;                                                                               \
        return real(address, size, protection, flags, descriptor, place);                                    \
    }
MAPS(mmap)
MAPS(mmap64)

#define ON_PATH(kind, type, name, parameters, arguments, types) \
    type name parameters {                                      \
        REAL(type, #name, types);                               \
        BY_PATH(kind, #name, AT_FDCWD, path);                   \
        return real arguments;                                  \
    }
#define AT_PATH(kind, type, name, parameters, arguments, types) \
    type name parameters {                                      \
        REAL(type, #name, types);                               \
        BY_PATH(kind, #name, directory, path);                  \
        return real arguments;                                  \
    }
ON_PATH(STAT, int, stat, (const char *path, struct stat *found), (path, found), const char * COMMA struct stat *)
ON_PATH(STAT, int, stat64, (const char *path, struct stat64 *found), (path, found), const char * COMMA struct stat64 *)
ON_PATH(STAT, int, lstat, (const char *path, struct stat *found), (path, found), const char * COMMA struct stat *)
ON_PATH(STAT, int, lstat64, (const char *path, struct stat64 *found), (path, found), const char * COMMA struct stat64 *)
ON_PATH(STAT, int, access, (const char *path, int mode), (path, mode), const char * COMMA int)
ON_PATH(STAT, int, statvfs, (const char *path, struct statvfs *found), (path, found), const char * COMMA struct statvfs *)
ON_PATH(STAT, int, statvfs64, (const char *path, struct statvfs64 *found), (path, found),
        const char * COMMA struct statvfs64 *)
ON_PATH(STAT, ssize_t, readlink, (const char *path, char *target, size_t size), (path, target, size),
        const char * COMMA char * COMMA size_t)
ON_PATH(NAME, int, mkdir, (const char *path, mode_t mode), (path, mode), const char * COMMA mode_t)
ON_PATH(NAME, int, rename, (const char *path, const char *new), (path, new), const char * COMMA const char *)
ON_PATH(NAME, int, link, (const char *path, const char *new), (path, new), const char * COMMA const char *)
ON_PATH(REMOVE, int, unlink, (const char *path), (path), const char *)
ON_PATH(REMOVE, int, rmdir, (const char *path), (path), const char *)
ON_PATH(CHANGE, int, chmod, (const char *path, mode_t mode), (path, mode), const char * COMMA mode_t)
ON_PATH(CHANGE, int, truncate64, (const char *path, off64_t size), (path, size), const char * COMMA off64_t)
AT_PATH(STAT, int, fstatat64, (int directory, const char *path, struct stat64 *found, int flags),
        (directory, path, found, flags), int COMMA const char * COMMA struct stat64 * COMMA int)
AT_PATH(STAT, int, faccessat, (int directory, const char *path, int mode, int flags), (directory, path, mode, flags),
        int COMMA const char * COMMA int COMMA int)
AT_PATH(NAME, int, mkdirat, (int directory, const char *path, mode_t mode), (directory, path, mode),
        int COMMA const char * COMMA mode_t)
AT_PATH(NAME, int, renameat, (int directory, const char *path, int to, const char *new), (directory, path, to, new),
        int COMMA const char * COMMA int COMMA const char *)
AT_PATH(NAME, int, renameat2, (int directory, const char *path, int to, const char *new, unsigned flags),
        (directory, path, to, new, flags), int COMMA const char * COMMA int COMMA const char * COMMA unsigned)
AT_PATH(NAME, int, linkat, (int directory, const char *path, int to, const char *new, int flags),
        (directory, path, to, new, flags), int COMMA const char * COMMA int COMMA const char * COMMA int)
AT_PATH(REMOVE, int, unlinkat, (int directory, const char *path, int flags), (directory, path, flags),
        int COMMA const char * COMMA int)
AT_PATH(CHANGE, int, fchmodat, (int directory, const char *path, mode_t mode, int flags), (directory, path, mode, flags),
        int COMMA const char * COMMA mode_t COMMA int)
AT_PATH(CHANGE, int, utimensat, (int directory, const char *path, const struct timespec times[2], int flags),
        (directory, path, times, flags), int COMMA const char * COMMA const struct timespec * COMMA int)

/* The old entry points of stat, by which programs that were built against glibc before 2.33 go. */
int __xstat64(int version, const char *path, struct stat64 *found) {
    REAL(int, "__xstat64", int, const char *, struct stat64 *);
    BY_PATH(STAT, "stat", AT_FDCWD, path);
    return real(version, path, found);
}
int __lxstat64(int version, const char *path, struct stat64 *found) {
    REAL(int, "__lxstat64", int, const char *, struct stat64 *);
    BY_PATH(STAT, "lstat", AT_FDCWD, path);
    return real(version, path, found);
}
int __fxstat64(int version, int descriptor, struct stat64 *found) {
    REAL(int, "__fxstat64", int, int, struct stat64 *);
    BY_DESCRIPTOR(STAT, "fstat", descriptor);
    return real(version, descriptor, found);
}

DIR *opendir(const char *path) {
    REAL(DIR *, "opendir", const char *);
    int watched = names(AT_FDCWD, path);
    if (watched && fails(LIST, "opendir", path, -1)) return NULL;
    DIR *stream = real(path);
    if (stream != NULL) mark(dirfd(stream), watched);
    return stream;
}

DIR *fdopendir(int descriptor) {
    REAL(DIR *, "fdopendir", int);
    if (is_below(descriptor) && fails(LIST, "fdopendir", NULL, descriptor)) return NULL;
    return real(descriptor);
}

int closedir(DIR *stream) {
    REAL(int, "closedir", DIR *);
    mark(dirfd(stream), 0);
    return real(stream);
}

#define READS_FOLDER(type, name)                                                                       \
    struct type *name(DIR *stream) {                                                                   \
        REAL(struct type *, #name, DIR *);                                                             \
        if (is_below(dirfd(stream)) && fails(LIST, "readdir", NULL, dirfd(stream))) return NULL;       \
        return real(stream);                                                                           \
    }
READS_FOLDER(dirent, readdir)
READS_FOLDER(dirent64, readdir64)
