/* The tap's hooks: read_hook sees every request before libfuse does, and writev_hook every reply of
 * libfuse before the kernel. They know no filesystem: what to do is up to the callbacks.
 */
#include "_tap.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
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

enum { FORGET = 2, BATCH_FORGET = 42 }; /* the requests that take no reply */

/* Vain spins in a row that end spinning, and after how many waits it is tried again. */
enum { PATIENCE = 4, RETRY = 64 };

/* -- replies ------------------------------------------------------------------------------- */

int answer(int fd, uint64_t unique, int error, const void *body, size_t length)
{
    struct reply_header header = {
        .len = (uint32_t)(sizeof header + (error ? 0 : length)), .error = -error, .unique = unique};
    struct iovec iov[] = {{&header, sizeof header}, {(void *)body, length}};
    ssize_t written = writev(fd, iov, error || !length ? 1 : 2);
    return written < 0 ? errno : 0;
}

/* Let Python take back what an answer gave away that nobody received. */
static void abandoned(uint32_t opcode, uint64_t unique, const void *body, size_t length)
{
    PyObject *callback = tap.on_abandoned;
    if (callback == NULL)
        return;
    Py_INCREF(callback);
    PyObject *result =
        PyObject_CallFunction(callback, "IKy#", (unsigned)opcode, (unsigned long long)unique,
                              body ? body : "", (Py_ssize_t)length); /* a null would be None */
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
        tap.awaited_count = (int)PyDict_GET_SIZE(tap.awaited);
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

/* Called in any thread, with the GIL or without. */
ssize_t writev_hook(int fd, struct iovec *iov, int count, void *Py_UNUSED(userdata))
{
    struct reply_header *header = iov[0].iov_base;
    if (tap.awaited_count == 0 || header->unique == 0) /* 0: a notification */
        return writev(fd, iov, count);
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *body = replaced(header, iov, count);
    ssize_t written;
    if (body) {
        header->len = (uint32_t)(sizeof *header + PyBytes_GET_SIZE(body));
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

enum { LARGE = 80 << 10 }; /* bytes; beyond come only writes, and many lookups forgotten at once */
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
    if (result == Py_Ellipsis)
        return ANSWERED;
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
    int failure = silent ? 0 : answer(fd, request->unique, (int)error, view.buf, view.len);
    if (failure == ENOENT && error == 0)
        abandoned(request->opcode, request->unique, view.buf, view.len);
    else if (failure && failure != ENOENT && failure != ENODEV) /* the next read tells ENODEV */
        unraisable(callback, failure);
    PyBuffer_Release(&view);
    return ANSWERED;
}

/* The body of a request: bytes, or, where copying would cost more than the call, a memoryview. */
static PyObject *request_body(const struct request_header *request, size_t length, bool kept)
{
    char *start = (char *)(request + 1);
    if (length > LARGE && !kept)
        return PyMemoryView_FromMemory(start, length, PyBUF_READ);
    return PyBytes_FromStringAndSize(start, length);
}

/* The memory under a memoryview is the next request's: nobody may look at it any more. */
static void release_body(PyObject *body)
{
    PyObject *released = PyMemoryView_Check(body) ? PyObject_CallMethod(body, "release", NULL)
                                                  : Py_NewRef(Py_None);
    if (!released)
        PyErr_WriteUnraisable(body);
    Py_XDECREF(released);
    Py_DECREF(body);
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
    PyObject *body = request_body(request, length - bare, tap.on_reply[opcode] != NULL);
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
            tap.awaited_count = (int)PyDict_GET_SIZE(tap.awaited);
        else
            unraisable(tap.on_reply[opcode], EIO);
        Py_XDECREF(entry);
    }
    Py_XDECREF(unique);
    if (body)
        release_body(body);
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

/* Serve requests until one is declined or the event loop is to have its turn. EINTR has pyfuse3 go
 * on with its loop. */
ssize_t read_hook(int fd, void *buf, size_t size, void *Py_UNUSED(userdata))
{
    PyGILState_STATE gil = PyGILState_Ensure();
    enum outcome outcome = ANSWERED;
    ssize_t length = 0;
    int error = 0;
    for (int served = 0; outcome == ANSWERED && !error; ) {
        if ((length = next_request(fd, buf, size)) < 0) {
            error = errno == EAGAIN ? EINTR : errno;
            break;
        }
        outcome = DECLINED; /* also what is too short: libfuse says so */
        if ((size_t)length >= sizeof(struct request_header))
            outcome = dispatch(fd, buf, length);
        /* A descriptor that is not, or no longer, known as mounted might block. */
        if (outcome == STARTED || (outcome == ANSWERED && (++served >= tap.turn || fd != tap.fd)))
            error = EINTR;
    }
    PyGILState_Release(gil);
    errno = error;
    return error ? -1 : length;
}
