/* What functions are given, as C has it; for the extensions that take descriptors and numbers. */
#ifndef VOLFS_ARGUMENTS_H
#define VOLFS_ARGUMENTS_H

#include <Python.h>

#include <errno.h>
#include <stdint.h>

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
    long fd = PyLong_AsLong(object);
    if (fd == -1 && PyErr_Occurred())
        return -1;
    if (fd < 0 || fd > INT32_MAX) {
        errno = EBADF;
        failed();
        return -1;
    }
    return fd;
}

/* Arguments (descriptor, `count` numbers); the descriptor, or -1 with an exception set. */
static inline int descriptor_and(PyObject *const *args, Py_ssize_t given, int count, uint64_t *into)
{
    return numbers(args + 1, given - 1, count, into) ? descriptor(args[0]) : -1;
}

#endif
