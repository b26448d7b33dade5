/* The wire tap: Python callbacks between the kernel's FUSE device and libfuse.
 *
 * libfuse lets the read and the writev of a session be replaced (fuse_session_custom_io in
 * <fuse_lowlevel.h>), but pyfuse3 keeps its session to itself. So the call that pyfuse3 makes with
 * it, fuse_session_mount, is pointed at tapped_mount by way of the relocation that the dynamic
 * linker resolved it with. From then on read_hook sees every request before libfuse, and
 * writev_hook every reply of libfuse before the kernel. libfuse's headers and library are needed
 * neither to build nor to link: what is used of them is declared here and looked up at run time.
 *
 * The structures of the wire are those of <linux/fuse.h>. This file knows no filesystem: what to
 * do with a request is up to the callbacks; see _tap.pyi for their contract.
 *
 * All state is guarded by the GIL, except where said.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_redirect.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>
#include <unistd.h>

struct request_header { /* struct fuse_in_header */
    uint32_t len, opcode;
    uint64_t unique, node_id;
    uint32_t uid, gid, pid;
    uint16_t extensions; /* at the end of the body, in units of 8 bytes */
    uint16_t padding;
};

struct reply_header { /* struct fuse_out_header */
    uint32_t len;
    int32_t error; /* negated */
    uint64_t unique;
};

struct custom_io { /* struct fuse_custom_io; without its splice functions libfuse splices nothing */
    ssize_t (*writev)(int, struct iovec *, int, void *);
    ssize_t (*read)(int, void *, size_t, void *);
    void *splice_receive, *splice_send, *clone_fd;
};

enum { FORGET = 2, BATCH_FORGET = 42 }; /* the requests that take no reply */
enum { OPCODES = 128 };                 /* one more than the greatest opcode that can be tapped */
enum { ERRORS = 512 };                  /* the kernel takes errnos below this (fs/fuse/dev.c) */

/* Vain spins in a row that end spinning, and after how many waits it is tried again. */
enum { PATIENCE = 4, RETRY = 64 };

enum ended { IDLE, TURN, LATER, PASSED, FAILED };

static struct libfuse {
    int (*mount)(void *, const char *);
    int (*fd_of)(const void *);
    int (*custom_io)(void *, const struct custom_io *, int);             /* up to libfuse 3.16 */
    int (*custom_io_317)(void *, const struct custom_io *, size_t, int); /* later, if not null */
} libfuse;

static struct {
    int fd; /* of the mounted session, else -1 */
    PyObject *on_request[OPCODES], *on_reply[OPCODES], *on_abandoned;
    PyObject *awaited;         /* unique of a passed request: (reply callback, request body) */
    atomic_int awaited_count;  /* len(awaited), for threads without the GIL */
    uint64_t counts[OPCODES];  /* [0]: requests with unknown opcodes */
    int turn, spin, linger_ms; /* see set_drain */
    int vain;                  /* spins, then waits without spinning, since a spin found something */
    enum ended ended;
} tap = {.fd = -1, .turn = 1};

/* -- replies ------------------------------------------------------------------------------- */

/* Answer a request: 0 or an errno. ENOENT: the kernel has given the request up. */
static int answer(int fd, uint64_t unique, int error, const void *body, size_t length)
{
    struct reply_header header = {
        .len = sizeof header + (error ? 0 : length), .error = -error, .unique = unique};
    struct iovec iov[] = {{&header, sizeof header}, {(void *)body, length}};
    ssize_t written = writev(fd, iov, error || !length ? 1 : 2);
    return written < 0 ? errno : 0;
}

/* Let Python take back what the answer that nobody received had given away. */
static void abandoned(uint32_t opcode, uint64_t unique, const void *body, size_t length)
{
    PyObject *callback = tap.on_abandoned;
    if (callback == NULL)
        return;
    Py_INCREF(callback);
    PyObject *result = PyObject_CallFunction(callback, "IKy#", (unsigned)opcode,
                                             (unsigned long long)unique, body, (Py_ssize_t)length);
    if (result == NULL)
        PyErr_WriteUnraisable(callback);
    Py_XDECREF(result);
    Py_DECREF(callback);
}

/* A copy of the iovecs after the first, as bytes. */
static PyObject *body_of(const struct iovec *iov, int count)
{
    Py_ssize_t length = 0;
    for (int i = 1; i < count; i++)
        length += iov[i].iov_len;
    PyObject *body = PyBytes_FromStringAndSize(NULL, length);
    char *end = body ? PyBytes_AS_STRING(body) : NULL;
    for (int i = 1; body && i < count; i++) {
        if (iov[i].iov_len) /* a null base comes with it */
            memcpy(end, iov[i].iov_base, iov[i].iov_len);
        end += iov[i].iov_len;
    }
    return body;
}

/* The body that the reply callback wants instead of this reply of libfuse, else NULL. */
static PyObject *replaced(const struct reply_header *header, const struct iovec *iov, int count)
{
    PyObject *unique = PyLong_FromUnsignedLongLong(header->unique);
    PyObject *entry = unique && tap.awaited ? PyDict_GetItemWithError(tap.awaited, unique) : NULL;
    PyObject *body = NULL, *result = NULL;
    if (entry) {
        Py_INCREF(entry);
        PyDict_DelItem(tap.awaited, unique);
        tap.awaited_count = PyDict_GET_SIZE(tap.awaited);
        if (header->error == 0 && (body = body_of(iov, count)))
            result = PyObject_CallFunctionObjArgs(PyTuple_GET_ITEM(entry, 0),
                                                  PyTuple_GET_ITEM(entry, 1), body, NULL);
        if (result && result != Py_None && !PyBytes_Check(result))
            PyErr_Format(PyExc_TypeError, "a reply callback returned %R", result);
    }
    if (PyErr_Occurred())
        PyErr_WriteUnraisable(entry ? PyTuple_GET_ITEM(entry, 0) : NULL);
    if (result && !PyBytes_Check(result))
        Py_CLEAR(result);
    Py_XDECREF(body);
    Py_XDECREF(entry);
    Py_XDECREF(unique);
    return result;
}

/* What libfuse writes with; called in any thread, with the GIL or without. */
static ssize_t writev_hook(int fd, struct iovec *iov, int count, void *Py_UNUSED(userdata))
{
    struct reply_header *header = iov[0].iov_base;
    if (tap.awaited_count == 0 || header->unique == 0) /* 0: a notification */
        return writev(fd, iov, count);
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *body = replaced(header, iov, count);
    ssize_t written;
    if (body) {
        header->len = sizeof *header + PyBytes_GET_SIZE(body);
        struct iovec other[] = {iov[0], {PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body)}};
        written = writev(fd, other, 2);
    } else {
        written = writev(fd, iov, count);
    }
    int error = errno;
    Py_XDECREF(body);
    PyGILState_Release(gil);
    errno = error;
    return written;
}

/* -- requests ------------------------------------------------------------------------------ */

enum outcome { ANSWERED, STARTED, DECLINED };

static void unraisable(PyObject *callback, int error)
{
    if (!PyErr_Occurred()) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
    }
    PyErr_WriteUnraisable(callback);
}

/* Send what a callback returned. An exception, or nonsense, is printed and answered with EIO. */
static enum outcome conclude(int fd, const struct request_header *request, PyObject *callback,
                             PyObject *result)
{
    bool silent = request->opcode == FORGET || request->opcode == BATCH_FORGET;
    Py_buffer view = {.buf = NULL, .len = 0};
    long error = 0;
    if (result == Py_NotImplemented)
        return DECLINED;
    if (result == Py_None)
        return silent ? ANSWERED : STARTED;
    if (result && PyBytes_CheckExact(result)) {
        view.buf = PyBytes_AS_STRING(result);
        view.len = PyBytes_GET_SIZE(result);
    } else if (result && PyLong_Check(result)) {
        error = PyLong_AsLong(result);
        if (error < 0 || error >= ERRORS) {
            PyErr_Format(PyExc_ValueError, "a request callback returned %R for an errno", result);
            error = -1;
        }
    } else if (result == NULL || PyObject_GetBuffer(result, &view, PyBUF_SIMPLE) < 0) {
        error = -1;
    }
    if (error < 0) {
        unraisable(callback, EIO);
        error = EIO;
    }
    int failure = silent ? 0 : answer(fd, request->unique, error, view.buf, view.len);
    if (failure == ENOENT && error == 0)
        abandoned(request->opcode, request->unique, view.buf, view.len);
    else if (failure && failure != ENOENT && failure != ENODEV) /* the next read tells ENODEV */
        unraisable(callback, failure);
    PyBuffer_Release(&view);
    return ANSWERED;
}

/* Call the callback of a request; if it is to go on to libfuse, remember to look at the reply. */
static enum outcome dispatch(int fd, const struct request_header *request, size_t length)
{
    uint32_t opcode = request->opcode < OPCODES ? request->opcode : 0;
    PyObject *callback = tap.on_request[opcode];
    size_t bare = sizeof *request + 8 * (size_t)request->extensions;
    tap.counts[opcode]++;
    if ((callback == NULL && tap.on_reply[opcode] == NULL) || length < bare)
        return DECLINED;

    enum outcome outcome = DECLINED;
    PyObject *body = PyBytes_FromStringAndSize((const char *)(request + 1), length - bare);
    PyObject *unique = PyLong_FromUnsignedLongLong(request->unique);
    if (callback) {
        Py_INCREF(callback);
        PyObject *arguments[] = {
            NULL, /* room for the callee, see PY_VECTORCALL_ARGUMENTS_OFFSET */
            unique,
            PyLong_FromUnsignedLongLong(request->node_id),
            PyLong_FromUnsignedLong(request->uid),
            PyLong_FromUnsignedLong(request->gid),
            PyLong_FromUnsignedLong(request->pid),
            body,
        };
        PyObject *result = NULL;
        if (!PyErr_Occurred()) /* none of these could be made without one */
            result = PyObject_Vectorcall(callback, arguments + 1,
                                         6 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
        for (int i = 2; i < 6; i++)
            Py_XDECREF(arguments[i]);
        outcome = conclude(fd, request, callback, result);
        Py_XDECREF(result);
        Py_DECREF(callback);
    }
    if (outcome == DECLINED && tap.on_reply[opcode]) {
        PyObject *entry = body ? PyTuple_Pack(2, tap.on_reply[opcode], body) : NULL;
        if (tap.awaited && unique && entry && PyDict_SetItem(tap.awaited, unique, entry) == 0)
            tap.awaited_count = PyDict_GET_SIZE(tap.awaited);
        else
            unraisable(tap.on_reply[opcode], EIO);
        Py_XDECREF(entry);
    }
    Py_XDECREF(unique);
    Py_XDECREF(body);
    return outcome;
}

/* Look for a request for a while, without the GIL; spin is left above 0 if spinning found one. */
static ssize_t wait_read(int fd, void *buf, size_t size, int *spin, int linger_ms)
{
    struct pollfd poller = {.fd = fd, .events = POLLIN};
    for (; *spin > 0; --*spin) {
        sched_yield(); /* the client may be on this processor */
        ssize_t length = read(fd, buf, size);
        if (length >= 0 || errno != EAGAIN)
            return length;
    }
    if (linger_ms > 0 && poll(&poller, 1, linger_ms) > 0)
        return read(fd, buf, size);
    errno = EAGAIN; /* also upon a signal: Python is to see to it */
    return -1;
}

/* The next request; -1 and EAGAIN if none came in time. */
static ssize_t next_request(int fd, void *buf, size_t size)
{
    ssize_t length;
    do {
        length = read(fd, buf, size);
        if (length < 0 && errno == EAGAIN && fd == tap.fd && (tap.spin || tap.linger_ms)) {
            int spin = tap.vain < PATIENCE ? tap.spin : 0, linger_ms = tap.linger_ms;
            bool spun = spin > 0;
            Py_BEGIN_ALLOW_THREADS
            length = wait_read(fd, buf, size, &spin, linger_ms);
            Py_END_ALLOW_THREADS
            if (spun)
                tap.vain = spin > 0 ? 0 : tap.vain + 1;
            else if (tap.spin && ++tap.vain > PATIENCE + RETRY)
                tap.vain = PATIENCE - 1;
        }
    } while (length < 0 && (errno == EINTR || errno == ENOENT)); /* ENOENT: given up meanwhile */
    return length;
}

/* What libfuse reads with: serves requests until one is declined or the event loop has its turn.
 * EINTR has pyfuse3 go on with its loop. */
static ssize_t read_hook(int fd, void *buf, size_t size, void *Py_UNUSED(userdata))
{
    PyGILState_STATE gil = PyGILState_Ensure();
    enum outcome outcome = ANSWERED;
    ssize_t length = 0;
    int error = 0;
    for (int served = 0; outcome == ANSWERED && !error; ) {
        if ((length = next_request(fd, buf, size)) < 0) {
            error = errno == EAGAIN ? EINTR : errno;
            tap.ended = errno == EAGAIN ? IDLE : FAILED;
            break;
        }
        outcome = DECLINED; /* also what is too short: libfuse says so */
        if ((size_t)length >= sizeof(struct request_header))
            outcome = dispatch(fd, buf, length);
        tap.ended = outcome == DECLINED ? PASSED : outcome == STARTED ? LATER : TURN;
        /* A descriptor that is not, or no longer, known as mounted might block. */
        if (outcome == STARTED || (outcome == ANSWERED && (++served >= tap.turn || fd != tap.fd)))
            error = EINTR;
    }
    PyGILState_Release(gil);
    errno = error;
    return error ? -1 : length;
}

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
    int fd = result == 0 ? libfuse.fd_of(session) : -1;
    if (placeholder >= 0 && (failed || (fd >= 0 && fd != placeholder)))
        close(placeholder);
    if (!failed && fd >= 0) {
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

static PyObject *ended(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyLong_FromLong(tap.ended);
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
    {"ended", ended, METH_NOARGS, NULL},
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
    if (module == NULL || (tap.awaited = PyDict_New()) == NULL ||
        PyModule_AddIntConstant(module, "IDLE", IDLE) < 0 ||
        PyModule_AddIntConstant(module, "TURN", TURN) < 0 ||
        PyModule_AddIntConstant(module, "LATER", LATER) < 0 ||
        PyModule_AddIntConstant(module, "PASSED", PASSED) < 0 ||
        PyModule_AddIntConstant(module, "FAILED", FAILED) < 0)
        Py_CLEAR(module);
    return module;
}
