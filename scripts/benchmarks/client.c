/* One kind of system call in a tight loop, timed from outside the loop.
 *
 *     client OPERATION COUNT [PASSES]
 *
 * works in the current directory on the names n0, n1, ... n(COUNT-1), PASSES times over, and
 * prints "NANOSECONDS CALLS". Any call that fails ends it with 1.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

enum { NAME = 32, SMALL = 4096 };

static char small[SMALL];
static long entries;

static int do_stat(const char *name) { struct stat st; return lstat(name, &st); }
static int do_unlink(const char *name) { return unlink(name); }
static int do_mkdir(const char *name) { return mkdir(name, 0755); }
static int do_rmdir(const char *name) { return rmdir(name); }

static int do_missing(const char *name)
{
    struct stat st;
    return lstat(name, &st) == -1 && errno == ENOENT ? 0 : -1;
}

static int do_open(const char *name)
{
    int fd = open(name, O_RDONLY);
    return fd == -1 ? -1 : close(fd);
}

static int do_create(const char *name)
{
    int fd = open(name, O_CREAT | O_EXCL | O_WRONLY, 0644);
    return fd == -1 ? -1 : close(fd);
}

static int do_symlink(const char *name) { return symlink("some/where/else", name); }
static int do_chmod(const char *name) { return chmod(name, 0640); }
static int do_utime(const char *name) { return utimensat(AT_FDCWD, name, NULL, 0); }
static int do_truncate(const char *name) { return truncate(name, 100); }
static int do_setxattr(const char *name) { return setxattr(name, "user.a", "value", 5, 0); }

static int do_readlink(const char *name)
{
    char target[NAME];
    return readlink(name, target, NAME) == -1 ? -1 : 0;
}

static int do_getxattr(const char *name)
{
    char value[NAME];
    return getxattr(name, "user.a", value, NAME) == -1 ? -1 : 0;
}

/* What name is called after it got another name, or one more. */
static const char *other(const char *name)
{
    static char target[NAME];
    memcpy(target, name, NAME);
    target[0] = 'r';
    return target;
}

static int do_rename(const char *name) { return rename(name, other(name)); }
static int do_link(const char *name) { return link(name, other(name)); }

static int write_new(const char *name, int sync)
{
    int fd = open(name, O_CREAT | O_EXCL | O_WRONLY, 0644);
    if (fd == -1 || write(fd, small, SMALL) != SMALL || (sync && fsync(fd)))
        return -1;
    return close(fd);
}

static int do_write(const char *name) { return write_new(name, 0); }
static int do_writesync(const char *name) { return write_new(name, 1); }

static int do_read(const char *name)
{
    int fd = open(name, O_RDONLY);
    return fd == -1 || read(fd, small, SMALL) != SMALL ? -1 : close(fd);
}

static int list(int with_stat)
{
    DIR *dir = opendir(".");
    struct dirent *entry;
    struct stat st;

    if (!dir)
        return -1;
    while (errno = 0, (entry = readdir(dir))) {
        if (entry->d_name[0] == '.')
            continue;
        if (with_stat && fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW))
            return -1;
        entries++;
    }
    return errno ? -1 : closedir(dir);
}

static int do_list(const char *name) { (void)name; return list(0); }
static int do_liststat(const char *name) { (void)name; return list(1); }

static int walked(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)path, (void)st, (void)at;
    if (type == FTW_NS || type == FTW_DNR)
        return -1;
    entries++;
    return 0;
}

static int do_walk(const char *name)
{
    (void)name;
    return nftw(".", walked, 64, FTW_PHYS) ? -1 : 0;
}

/* per_entry: one call goes through the whole directory; what counts is the entries it met. */
static const struct operation { const char *name; int (*call)(const char *); int per_entry; }
operations[] = {
    {"stat", do_stat, 0},         {"missing", do_missing, 0},   {"open", do_open, 0},
    {"create", do_create, 0},     {"rename", do_rename, 0},     {"unlink", do_unlink, 0},
    {"link", do_link, 0},         {"symlink", do_symlink, 0},   {"readlink", do_readlink, 0},
    {"mkdir", do_mkdir, 0},       {"rmdir", do_rmdir, 0},       {"chmod", do_chmod, 0},
    {"utime", do_utime, 0},       {"truncate", do_truncate, 0}, {"setxattr", do_setxattr, 0},
    {"getxattr", do_getxattr, 0}, {"write", do_write, 0},       {"writesync", do_writesync, 0},
    {"read", do_read, 0},         {"list", do_list, 1},         {"liststat", do_liststat, 1},
    {"walk", do_walk, 1},
};

static long long now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

int main(int argc, char **argv)
{
    const struct operation *op = NULL;
    long count, passes, pass, i;
    long long start;
    char (*names)[NAME];

    for (i = 0; argc > 2 && i < (long)(sizeof operations / sizeof *operations); i++)
        if (!strcmp(argv[1], operations[i].name))
            op = &operations[i];
    if (!op) {
        fprintf(stderr, "usage: client OPERATION COUNT [PASSES]\n");
        return 2;
    }
    count = atol(argv[2]);
    passes = argc > 3 ? atol(argv[3]) : 1;
    names = calloc(count + 1, NAME);
    for (i = 0; i < count; i++)
        snprintf(names[i], NAME, "n%ld", i);

    start = now();
    for (pass = 0; pass < passes; pass++)
        for (i = 0; i < (op->per_entry ? 1 : count); i++)
            if (op->call(names[i])) {
                fprintf(stderr, "%s %s: %s\n", op->name, names[i], strerror(errno));
                return 1;
            }
    printf("%lld %ld\n", now() - start, op->per_entry ? entries : count * passes);
    return 0;
}
