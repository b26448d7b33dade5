/*
 * System calls of the hot path that Python lacks: by ctypes each takes longer than a request.
 *
 * Identities belong to the calling thread, as setfsuid(2) has it.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <stdint.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>

struct backing_map { /* struct fuse_backing_map of linux/fuse.h */
    int32_t fd;
    uint32_t flags;
    uint64_t padding;
};

#define BACKING_OPEN _IOW(229, 1, struct backing_map)
#define BACKING_CLOSE _IOW(229, 2, uint32_t)

static int numbers(PyObject *const *args, Py_ssize_t given, int count, long *into)
{
    if (given != count) {
        PyErr_Format(PyExc_TypeError, "%d arguments expected, not %zd", count, given);
        return 0;
    }
    for (int i = 0; i < count; i++) {
        into[i] = PyLong_AsLong(args[i]);
        if (into[i] == -1 && PyErr_Occurred())
            return 0;
    }
    return 1;
}

static PyObject *py_setfsids(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    long n[2]; /* uid, gid */
    if (!numbers(args, count, 2, n))
        return NULL;
    /* From root's to another's, the group first; back, it makes no difference. */
    setfsgid(n[1]);
    setfsuid(n[0]);
    Py_RETURN_NONE;
}

static PyObject *py_backing_open(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    long n[3]; /* device, descriptor, uid */
    if (!numbers(args, count, 3, n))
        return NULL;
    struct backing_map map = {.fd = n[1]};
    int before = setfsuid(n[2]);
    int id = ioctl(n[0], BACKING_OPEN, &map);
    int error = errno;
    setfsuid(before);
    if (id < 0) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromLong(id);
}

static PyObject *py_backing_close(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    long n[2]; /* device, id */
    if (!numbers(args, count, 2, n))
        return NULL;
    uint32_t id = n[1];
    if (ioctl(n[0], BACKING_CLOSE, &id) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

#define FAST(name) {#name, (PyCFunction)(void (*)(void))py_##name, METH_FASTCALL, NULL}
static PyMethodDef functions[] = {FAST(setfsids), FAST(backing_open), FAST(backing_close), {0}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "volfs.fs.kernel._calls",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__calls(void)
{
    return PyModule_Create(&definition);
}
