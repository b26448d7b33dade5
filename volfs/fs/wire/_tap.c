/* The wire tap: Python callbacks between the kernel's FUSE device and libfuse; see _tap.pyi.
 *
 * libfuse lets the read and the writev of a session be replaced (fuse_session_custom_io in
 * <fuse_lowlevel.h>), but pyfuse3 keeps its session to itself. So the call that pyfuse3 makes with
 * it, fuse_session_mount, is redirected to tapped_mount. libfuse's headers and library are needed
 * neither to build nor to link: what is used of them is declared here and looked up at run time.
 */
#include "_tap.h"

#include "_redirect.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

struct custom_io { /* struct fuse_custom_io; without its splice functions libfuse splices nothing */
    ssize_t (*writev)(int, struct iovec *, int, void *);
    ssize_t (*read)(int, void *, size_t, void *);
    void *splice_receive, *splice_send, *clone_fd;
};

static struct libfuse {
    int (*mount)(void *, const char *);
    int (*fd_of)(const void *);
    int (*custom_io)(void *, const struct custom_io *, int);             /* up to libfuse 3.16 */
    int (*custom_io_317)(void *, const struct custom_io *, size_t, int); /* later, if not null */
} libfuse;

struct tap tap = {.fd = -1, .turn = 1};

/* -- attaching ----------------------------------------------------------------------------- */

/* What pyfuse3 calls for fuse_session_mount. Without the tap it still mounts. */
static int tapped_mount(void *session, const char *mountpoint)
{
    static const struct custom_io io = {.writev = writev_hook, .read = read_hook};
    /* The session closes this descriptor at its end, unless mounting puts another in its place. */
    int placeholder = open("/dev/null", O_RDWR | O_CLOEXEC), failed = 1;
    if (placeholder >= 0)
        failed = libfuse.custom_io_317
                     ? libfuse.custom_io_317(session, &io, sizeof io, placeholder)
                     : libfuse.custom_io(session, &io, placeholder);
    /* Mounting waits for fusermount3, and libfuse 3.19 may serve INIT in another thread. */
    PyThreadState *thread = PyGILState_Check() ? PyEval_SaveThread() : NULL;
    int result = libfuse.mount(session, mountpoint);
    if (thread)
        PyEval_RestoreThread(thread);
    int fd = libfuse.fd_of(session);
    if (placeholder >= 0 && fd != placeholder)
        close(placeholder);
    if (result == 0 && !failed && fd >= 0) {
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); /* read_hook reads until EAGAIN */
        tap.fd = fd;
    }
    return result;
}

static PyObject *attach(PyObject *Py_UNUSED(module), PyObject *argument)
{
    PyObject *path = NULL;
    if (!PyUnicode_FSConverter(argument, &path))
        return NULL;
    /* Kept open if all goes well, so that the library stays. */
    void *library = dlopen(PyBytes_AS_STRING(path), RTLD_NOW | RTLD_NOLOAD);
    Py_DECREF(path);
    if (library == NULL)
        return PyErr_Format(PyExc_RuntimeError, "%S is not loaded", argument);
    struct libfuse found;
    *(void **)&found.mount = dlsym(library, "fuse_session_mount");
    *(void **)&found.fd_of = dlsym(library, "fuse_session_fd");
    *(void **)&found.custom_io = dlsym(library, "fuse_session_custom_io");
    *(void **)&found.custom_io_317 = dlsym(library, "fuse_session_custom_io_317");
    const char *failure = "it depends on no libfuse with custom io";
    if (found.mount && found.fd_of && (found.custom_io || found.custom_io_317)) {
        libfuse = found;
        failure = redirect(library, "fuse_session_mount", (void *)tapped_mount);
    }
    if (failure) {
        dlclose(library);
        return PyErr_Format(PyExc_RuntimeError, "cannot tap %S: %s", argument, failure);
    }
    Py_RETURN_NONE;
}

/* -- the module ---------------------------------------------------------------------------- */

static bool put_callback(PyObject **place, PyObject *callback)
{
    if (callback != Py_None && !PyCallable_Check(callback)) {
        PyErr_SetString(PyExc_TypeError, "a callback must be callable, or None");
        return false;
    }
    Py_XSETREF(*place, callback == Py_None ? NULL : Py_NewRef(callback));
    return true;
}

static PyObject *on_opcode(PyObject **table, PyObject *arguments)
{
    unsigned opcode;
    PyObject *callback;
    if (!PyArg_ParseTuple(arguments, "IO", &opcode, &callback))
        return NULL;
    if (opcode == 0 || opcode >= OPCODES)
        return PyErr_Format(PyExc_ValueError, "no opcode: %u", opcode);
    return put_callback(&table[opcode], callback) ? Py_NewRef(Py_None) : NULL;
}

static PyObject *on_request(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    return on_opcode(tap.on_request, arguments);
}

static PyObject *on_reply(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    return on_opcode(tap.on_reply, arguments);
}

static PyObject *on_abandoned(PyObject *Py_UNUSED(module), PyObject *callback)
{
    return put_callback(&tap.on_abandoned, callback) ? Py_NewRef(Py_None) : NULL;
}

static PyObject *reply(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    unsigned long long unique;
    int error;
    Py_buffer body = {.buf = NULL, .len = 0};
    if (!PyArg_ParseTuple(arguments, "Ki|y*", &unique, &error, &body))
        return NULL;
    PyObject *result = NULL;
    if (error < 0 || error >= ERRORS) {
        PyErr_Format(PyExc_ValueError, "no errno: %d", error);
    } else {
        /* With the GIL, so that the descriptor cannot be closed and become another's. */
        errno = tap.fd < 0 ? ENOTCONN : answer(tap.fd, unique, error, body.buf, body.len);
        result = errno ? PyErr_SetFromErrno(PyExc_OSError) : Py_NewRef(Py_None);
    }
    PyBuffer_Release(&body);
    return result;
}

static PyObject *set_drain(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    return PyArg_ParseTuple(arguments, "iii", &tap.turn, &tap.spin, &tap.linger_ms)
               ? Py_NewRef(Py_None)
               : NULL;
}

static PyObject *counts(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    PyObject *result = PyDict_New();
    for (int opcode = 0; result && opcode < OPCODES; opcode++) {
        if (tap.counts[opcode] == 0)
            continue;
        PyObject *key = PyLong_FromLong(opcode);
        PyObject *value = PyLong_FromUnsignedLongLong(tap.counts[opcode]);
        if (!key || !value || PyDict_SetItem(result, key, value) < 0)
            Py_CLEAR(result);
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    return result;
}

static PyObject *session_fd(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyLong_FromLong(tap.fd);
}

static PyObject *close_tap(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    tap.fd = -1;
    for (int opcode = 0; opcode < OPCODES; opcode++) {
        Py_CLEAR(tap.on_request[opcode]);
        Py_CLEAR(tap.on_reply[opcode]);
    }
    Py_CLEAR(tap.on_abandoned);
    tap.awaited_count = 0;
    PyDict_Clear(tap.awaited);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"attach", attach, METH_O, NULL},
    {"session_fd", session_fd, METH_NOARGS, NULL},
    {"on_request", on_request, METH_VARARGS, NULL},
    {"on_reply", on_reply, METH_VARARGS, NULL},
    {"on_abandoned", on_abandoned, METH_O, NULL},
    {"reply", reply, METH_VARARGS, NULL},
    {"set_drain", set_drain, METH_VARARGS, NULL},
    {"counts", counts, METH_NOARGS, NULL},
    {"close", close_tap, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_tap",
    .m_size = -1, /* one tap in a process */
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__tap(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL || (tap.awaited = PyDict_New()) == NULL)
        Py_CLEAR(module);
    return module;
}
