/* What the two halves of the extension share: the records of the wire, and what functions are
 * given, as C has it.
 */
#ifndef VOLFS_RECORDS_H
#define VOLFS_RECORDS_H

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
/* On 32-bit machines too, numbers, sizes, offsets and times of 64 bits. */
#define _FILE_OFFSET_BITS 64
#define _TIME_BITS 64
#include <Python.h>

#include <errno.h>
#include <stdint.h>

/* -- records of linux/fuse.h, which old systems have in older versions -- */

struct attr { /* struct fuse_attr */
    uint64_t ino, size, blocks;
    int64_t atime, mtime, ctime;
    uint32_t atimensec, mtimensec, ctimensec;
    uint32_t mode, nlink, uid, gid, rdev, blksize, flags;
};

struct attr_out {
    uint64_t attr_valid;
    uint32_t attr_valid_nsec, dummy;
    struct attr attr;
};

struct entry_out {
    uint64_t nodeid, generation, entry_valid, attr_valid;
    uint32_t entry_valid_nsec, attr_valid_nsec;
    struct attr attr;
};

struct sx_time {
    int64_t sec;
    uint32_t nsec;
    int32_t reserved;
};

struct statx_out {
    uint64_t attr_valid;
    uint32_t attr_valid_nsec, flags;
    uint64_t spare[2];
    uint32_t mask, blksize;
    uint64_t attributes;
    uint32_t nlink, uid, gid;
    uint16_t mode, spare0;
    uint64_t ino, size, blocks, attributes_mask;
    struct sx_time atime, btime, ctime, mtime;
    uint32_t rdev_major, rdev_minor, dev_major, dev_minor;
    uint64_t spare2[14];
};

struct dirent_head { /* struct fuse_dirent; the name follows, padded with zeros to 8 bytes */
    uint64_t ino, off;
    uint32_t namelen, type;
};

_Static_assert(sizeof(struct attr_out) == 104, "struct fuse_attr_out");
_Static_assert(sizeof(struct entry_out) == 128, "struct fuse_entry_out");
_Static_assert(sizeof(struct statx_out) == 288, "struct fuse_statx_out");
_Static_assert(sizeof(struct dirent_head) == 24, "struct fuse_dirent");

/* -- functions for Python -- */

extern PyMethodDef directory_functions[]; /* those of _directory.c */

#define FAST(name) {#name, (PyCFunction)(void (*)(void))py_##name, METH_FASTCALL, NULL}

/* Convert `count` arguments to unsigned 64-bit numbers; false with an exception set. */
static inline int numbers(PyObject *const *args, Py_ssize_t given, int count, uint64_t *into)
{
    if (given != count) {
        PyErr_SetString(PyExc_TypeError, "wrong number of arguments");
        return 0;
    }
    for (int i = 0; i < count; i++) {
        into[i] = PyLong_AsUnsignedLongLong(args[i]);
        if (into[i] == (uint64_t)-1 && PyErr_Occurred())
            return 0;
    }
    return 1;
}

static inline PyObject *failed(void)
{
    return PyErr_SetFromErrno(PyExc_OSError);
}

/* A descriptor; -1 with an exception set, since none is negative. */
static inline int descriptor(PyObject *object)
{
    long long fd = PyLong_AsLongLong(object);
    if (fd == -1 && PyErr_Occurred())
        return -1;
    if (fd < 0 || fd > INT32_MAX) {
        errno = EBADF;
        failed();
        return -1;
    }
    return (int)fd;
}

/* Arguments (descriptor, `count` numbers); the descriptor, or -1 with an exception set. */
static inline int descriptor_and(PyObject *const *args, Py_ssize_t given, int count, uint64_t *into)
{
    return numbers(args + 1, given - 1, count, into) ? descriptor(args[0]) : -1;
}

#endif
