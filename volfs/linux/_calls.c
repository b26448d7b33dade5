/*
 * System calls of frequent requests that Python lacks: by ctypes, or on a path through /proc, each
 * takes longer than all the rest of its request.
 *
 * Those on inodes take O_PATH descriptors. Newer ones fail with ENOSYS on older kernels.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

/* The same number on all architectures; C libraries got to know it late. */
#ifndef SYS_fchmodat2
#define SYS_fchmodat2 452
#endif

/* Where long has 32 bits, the first utimensat ends in 2038; since Linux 5.1 there is a second one,
 * with the same number on all such machines. (x32 has 32 bits, but one that is right.) */
#if __SIZEOF_LONG__ == 8 || defined __x86_64__
#define UTIMENSAT SYS_utimensat
#else
#define UTIMENSAT 412 /* SYS_utimensat_time64 */
#endif

struct timestamp { /* struct __kernel_timespec of linux/time_types.h */
    int64_t sec, nsec;
};

struct backing_map { /* struct fuse_backing_map of linux/fuse.h */
    int32_t fd;
    uint32_t flags;
    uint64_t padding;
};

#define BACKING_OPEN _IOW(229, 1, struct backing_map)
#define BACKING_CLOSE _IOW(229, 2, uint32_t)

/* Convert `count` arguments to numbers; false with an exception set. Not to long: with 32 bits it
 * holds neither uids above 2^31 nor seconds after 2038. */
static int numbers(PyObject *const *args, Py_ssize_t given, int count, int64_t *into)
{
    if (given != count) {
        PyErr_Format(PyExc_TypeError, "%d arguments expected, not %zd", count, given);
        return 0;
    }
    for (int i = 0; i < count; i++) {
        into[i] = PyLong_AsLongLong(args[i]);
        if (into[i] == -1 && PyErr_Occurred())
            return 0;
    }
    return 1;
}

static PyObject *py_setfsids(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    int64_t n[2]; /* uid, gid */
    if (!numbers(args, count, 2, n))
        return NULL;
    /* The group first, while still root; on the way back it makes no difference. */
    setfsgid((gid_t)n[1]);
    setfsuid((uid_t)n[0]);
    Py_RETURN_NONE;
}

static PyObject *py_backing_open(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    int64_t n[3]; /* device, descriptor, uid */
    if (!numbers(args, count, 3, n))
        return NULL;
    struct backing_map map = {.fd = (int32_t)n[1]};
    int before = setfsuid((uid_t)n[2]);
    int id = ioctl((int)n[0], BACKING_OPEN, &map);
    int error = errno;
    setfsuid((uid_t)before);
    if (id < 0) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromLong(id);
}

static PyObject *py_backing_close(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    int64_t n[2]; /* device, id */
    if (!numbers(args, count, 2, n))
        return NULL;
    uint32_t id = (uint32_t)n[1];
    if (ioctl((int)n[0], BACKING_CLOSE, &id) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *done(long result)
{
    if (result < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *py_chown(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    int64_t n[3]; /* descriptor, uid, gid */
    int result;
    if (!numbers(args, count, 3, n))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = fchownat((int)n[0], "", (uid_t)n[1], (gid_t)n[2], AT_EMPTY_PATH);
    Py_END_ALLOW_THREADS
    return done(result);
}

static PyObject *py_chmod(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    int64_t n[2]; /* descriptor, mode */
    long result;
    if (!numbers(args, count, 2, n))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = syscall(SYS_fchmodat2, (int)n[0], "", (unsigned)n[1], AT_EMPTY_PATH);
    Py_END_ALLOW_THREADS
    return done(result);
}

static PyObject *py_utimens(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    int64_t n[5]; /* descriptor, seconds and nanoseconds of atime, of mtime */
    long result;
    if (!numbers(args, count, 5, n))
        return NULL;
    struct timestamp times[2] = {{n[1], n[2]}, {n[3], n[4]}};
    Py_BEGIN_ALLOW_THREADS
    /* Not by the C library's, which refuses an empty path in old versions. */
    result = syscall(UTIMENSAT, (int)n[0], "", times, AT_EMPTY_PATH);
    Py_END_ALLOW_THREADS
    return done(result);
}

static PyObject *py_link(PyObject *module, PyObject *args)
{
    (void)module;
    int fd, directory, result;
    const char *name;
    if (!PyArg_ParseTuple(args, "iiy", &fd, &directory, &name))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = linkat(fd, "", directory, name, AT_EMPTY_PATH);
    Py_END_ALLOW_THREADS
    return done(result);
}

#define LARGEST 65536 /* XATTR_SIZE_MAX of linux/limits.h */

static PyObject *py_getxattr(PyObject *module, PyObject *args)
{
    (void)module;
    int fd, error;
    ssize_t size;
    const char *name;
    char path[32], small[256];
    PyObject *large = NULL;
    if (!PyArg_ParseTuple(args, "iy", &fd, &name))
        return NULL;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    Py_BEGIN_ALLOW_THREADS
    size = getxattr(path, name, small, sizeof small);
    error = errno;
    Py_END_ALLOW_THREADS
    if (size >= 0)
        return PyBytes_FromStringAndSize(small, size);
    if (error == ERANGE) {
        large = PyBytes_FromStringAndSize(NULL, LARGEST);
        if (!large)
            return NULL;
        Py_BEGIN_ALLOW_THREADS
        size = getxattr(path, name, PyBytes_AS_STRING(large), LARGEST);
        error = errno;
        Py_END_ALLOW_THREADS
        if (size >= 0) {
            _PyBytes_Resize(&large, size);
            return large;
        }
        Py_DECREF(large);
    }
    if (error == ENODATA)
        Py_RETURN_NONE;
    errno = error;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *py_name_to_handle_at(PyObject *module, PyObject *arg)
{
    (void)module;
    int64_t fd;
    int mount_id, result;
    struct {
        struct file_handle head;
        char rest[MAX_HANDLE_SZ];
    } handle = {.head = {.handle_bytes = MAX_HANDLE_SZ}};
    if (!numbers(&arg, 1, 1, &fd))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = name_to_handle_at((int)fd, "", &handle.head, &mount_id, AT_EMPTY_PATH);
    Py_END_ALLOW_THREADS
    if (result < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    return Py_BuildValue("y#i", (char *)&handle.head.handle_type,
                         (Py_ssize_t)(sizeof handle.head.handle_type + handle.head.handle_bytes),
                         mount_id);
}

#define FAST(name) {#name, (PyCFunction)(void (*)(void))py_##name, METH_FASTCALL, NULL}
#define PLAIN(name) {#name, py_##name, METH_VARARGS, NULL}
static PyMethodDef functions[] = {
    FAST(setfsids), FAST(backing_open), FAST(backing_close), FAST(chown), FAST(chmod),
    FAST(utimens), PLAIN(link), PLAIN(getxattr),
    {"name_to_handle_at", py_name_to_handle_at, METH_O, NULL}, {0},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "volfs.linux._calls",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__calls(void)
{
    return PyModule_Create(&definition);
}
