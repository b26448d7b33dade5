/* The extension, and what stat(2) and statx(2) tell, in the records of the wire; see _records.pyi.
 *
 * A metadata request is answered from one struct stat. As a Python object of each field it would
 * take longer than the request; here the fields stay in C until they are asked for.
 *
 * System calls are made without the GIL: on a network filesystem they can take any time.
 */
#include "_records.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define NSEC 1000000000ULL

/* -- Status -- */

typedef struct {
    PyObject_HEAD
    struct stat st;
    struct timespec birth; /* 0 where the filesystem does not say */
} Status;

static PyTypeObject status_type;

static PyObject *new_status(const struct statx *sx)
{
    Status *self = PyObject_New(Status, &status_type);
    if (!self)
        return NULL;
#define TIMESPEC(time) {.tv_sec = (time).tv_sec, .tv_nsec = (time).tv_nsec}
    self->st = (struct stat){
        .st_dev = makedev(sx->stx_dev_major, sx->stx_dev_minor),
        .st_ino = sx->stx_ino,
        .st_mode = sx->stx_mode,
        .st_nlink = sx->stx_nlink,
        .st_uid = sx->stx_uid,
        .st_gid = sx->stx_gid,
        .st_rdev = makedev(sx->stx_rdev_major, sx->stx_rdev_minor),
        .st_size = (off_t)sx->stx_size,
        .st_blksize = sx->stx_blksize,
        .st_blocks = (blkcnt_t)sx->stx_blocks,
        .st_atim = TIMESPEC(sx->stx_atime),
        .st_mtim = TIMESPEC(sx->stx_mtime),
        .st_ctim = TIMESPEC(sx->stx_ctime),
    };
    self->birth = (struct timespec){0};
    if (sx->stx_mask & STATX_BTIME)
        self->birth = (struct timespec)TIMESPEC(sx->stx_btime);
    return (PyObject *)self;
}

/* statx(2) takes no longer than stat(2), and tells when the inode was made. */
static int look(int fd, const char *name, int flags, struct statx *sx)
{
    return statx(fd, name, flags, STATX_BASIC_STATS | STATX_BTIME, sx);
}

#define UNSIGNED(name)                                                      \
    static PyObject *get_##name(PyObject *self, void *closure)              \
    {                                                                       \
        (void)closure;                                                      \
        return PyLong_FromUnsignedLongLong(((Status *)self)->st.name);      \
    }
#define TIME(name, field)                                                                     \
    static PyObject *get_##name(PyObject *self, void *closure)                                \
    {                                                                                         \
        (void)closure;                                                                        \
        const struct timespec *time = &((Status *)self)->field;                               \
        /* In 64 bits from the year 1677 to 2262; beyond, by Python's arithmetic. */          \
        if (time->tv_sec > -9223372036LL && time->tv_sec < 9223372036LL)                      \
            return PyLong_FromLongLong(time->tv_sec * (long long)NSEC + time->tv_nsec);       \
        return big_time(time);                                                                \
    }

static PyObject *big_time(const struct timespec *time)
{
    PyObject *result = NULL;
    PyObject *sec = PyLong_FromLongLong(time->tv_sec), *unit = PyLong_FromLongLong(NSEC);
    PyObject *nsec = PyLong_FromLongLong(time->tv_nsec);
    PyObject *product = sec && unit ? PyNumber_Multiply(sec, unit) : NULL;
    if (product && nsec)
        result = PyNumber_Add(product, nsec);
    Py_XDECREF(product);
    Py_XDECREF(nsec);
    Py_XDECREF(unit);
    Py_XDECREF(sec);
    return result;
}

UNSIGNED(st_dev)
UNSIGNED(st_ino)
UNSIGNED(st_mode)
UNSIGNED(st_nlink)
UNSIGNED(st_uid)
UNSIGNED(st_gid)
UNSIGNED(st_rdev)
UNSIGNED(st_size)
UNSIGNED(st_blksize)
UNSIGNED(st_blocks)
TIME(st_atime_ns, st.st_atim)
TIME(st_mtime_ns, st.st_mtim)
TIME(st_ctime_ns, st.st_ctim)
TIME(birth_ns, birth)

#define FIELD(name) {#name, get_##name, NULL, NULL, NULL}
static PyGetSetDef status_fields[] = {
    FIELD(st_dev), FIELD(st_ino), FIELD(st_mode), FIELD(st_nlink), FIELD(st_uid),
    FIELD(st_gid), FIELD(st_rdev), FIELD(st_size), FIELD(st_blksize), FIELD(st_blocks),
    FIELD(st_atime_ns), FIELD(st_mtime_ns), FIELD(st_ctime_ns), FIELD(birth_ns), {0},
};

static void fill_attr(struct attr *attr, const struct stat *st, uint64_t ino)
{
    *attr = (struct attr){
        .ino = ino,
        .size = st->st_size,
        .blocks = st->st_blocks,
        .atime = st->st_atim.tv_sec,
        .mtime = st->st_mtim.tv_sec,
        .ctime = st->st_ctim.tv_sec,
        .atimensec = (uint32_t)st->st_atim.tv_nsec,
        .mtimensec = (uint32_t)st->st_mtim.tv_nsec,
        .ctimensec = (uint32_t)st->st_ctim.tv_nsec,
        .mode = st->st_mode,
        .nlink = (uint32_t)st->st_nlink,
        .uid = st->st_uid,
        .gid = st->st_gid,
        .rdev = (uint32_t)st->st_rdev, /* glibc's low 32 bits are what new_decode_dev reads */
        .blksize = (uint32_t)st->st_blksize,
    };
}

static PyObject *status_attr_out(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    uint64_t n[2]; /* node id, timeout */
    if (!numbers(args, count, 2, n))
        return NULL;
    struct attr_out out = {.attr_valid = n[1] / NSEC, .attr_valid_nsec = (uint32_t)(n[1] % NSEC)};
    fill_attr(&out.attr, &((Status *)self)->st, n[0]);
    return PyBytes_FromStringAndSize((char *)&out, sizeof out);
}

static PyObject *status_entry_out(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    uint64_t n[5]; /* node id, generation, inode number, timeouts of entry and attributes */
    if (!numbers(args, count, 5, n))
        return NULL;
    struct entry_out out = {
        .nodeid = n[0],
        .generation = n[1],
        .entry_valid = n[3] / NSEC,
        .entry_valid_nsec = (uint32_t)(n[3] % NSEC),
        .attr_valid = n[4] / NSEC,
        .attr_valid_nsec = (uint32_t)(n[4] % NSEC),
    };
    fill_attr(&out.attr, &((Status *)self)->st, n[2]);
    return PyBytes_FromStringAndSize((char *)&out, sizeof out);
}

static PyMethodDef status_methods[] = {
    {"attr_out", (PyCFunction)(void (*)(void))status_attr_out, METH_FASTCALL, NULL},
    {"entry_out", (PyCFunction)(void (*)(void))status_entry_out, METH_FASTCALL, NULL},
    {0},
};

static PyTypeObject status_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "volfs.fs.native._records.Status",
    .tp_basicsize = sizeof(Status),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_getset = status_fields,
    .tp_methods = status_methods,
};

/* -- asking -- */

/* Arguments (directory, name); the name, or NULL with an exception set. */
static const char *name_in(PyObject *const *args, Py_ssize_t count, int *directory)
{
    char *name;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "a descriptor and a name expected");
        return NULL;
    }
    if ((*directory = descriptor(args[0])) < 0)
        return NULL;
    /* Refuses a name with a zero byte, which C would end there. */
    return PyBytes_AsStringAndSize(args[1], &name, NULL) < 0 ? NULL : name;
}

static PyObject *py_fstat(PyObject *module, PyObject *arg)
{
    (void)module;
    struct statx sx;
    int result, fd = descriptor(arg);
    if (fd < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = look(fd, "", AT_EMPTY_PATH, &sx);
    Py_END_ALLOW_THREADS
    return result < 0 ? failed() : new_status(&sx);
}

static PyObject *py_fstatat(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    struct statx sx;
    int result, directory;
    const char *name = name_in(args, count, &directory);
    if (!name)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = look(directory, name, AT_SYMLINK_NOFOLLOW, &sx);
    Py_END_ALLOW_THREADS
    return result < 0 ? failed() : new_status(&sx);
}

static PyObject *py_open_path(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    struct statx sx;
    int fd, error = 0, directory;
    const char *name = name_in(args, count, &directory);
    if (!name)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    fd = openat(directory, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) {
        error = errno;
    } else if (look(fd, "", AT_EMPTY_PATH, &sx) < 0) {
        error = errno;
        close(fd);
        fd = -1;
    }
    Py_END_ALLOW_THREADS
    if (fd < 0) {
        if (error == ENOENT)
            Py_RETURN_NONE;
        errno = error;
        return failed();
    }
    PyObject *status = new_status(&sx), *number = PyLong_FromLong(fd), *result = NULL;
    if (status && number)
        result = PyTuple_Pack(2, number, status);
    Py_XDECREF(status);
    Py_XDECREF(number);
    if (!result)
        close(fd);
    return result;
}

static struct sx_time sx_time(struct statx_timestamp time)
{
    return (struct sx_time){.sec = time.tv_sec, .nsec = time.tv_nsec};
}

static PyObject *py_statx_out(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    struct statx sx;
    uint64_t n[4]; /* flags, mask, node id, timeout */
    int result, fd = descriptor_and(args, count, 4, n);
    if (fd < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = statx(fd, "", AT_EMPTY_PATH | (int)(n[0] & AT_STATX_SYNC_TYPE), (unsigned)n[1], &sx);
    Py_END_ALLOW_THREADS
    if (result < 0)
        return failed();
    struct statx_out out = {
        .attr_valid = n[3] / NSEC,
        .attr_valid_nsec = (uint32_t)(n[3] % NSEC),
        .mask = sx.stx_mask,
        .blksize = sx.stx_blksize,
        .attributes = sx.stx_attributes,
        .nlink = sx.stx_nlink,
        .uid = sx.stx_uid,
        .gid = sx.stx_gid,
        .mode = sx.stx_mode,
        .ino = n[2],
        .size = sx.stx_size,
        .blocks = sx.stx_blocks,
        .attributes_mask = sx.stx_attributes_mask,
        .atime = sx_time(sx.stx_atime),
        .btime = sx_time(sx.stx_btime),
        .ctime = sx_time(sx.stx_ctime),
        .mtime = sx_time(sx.stx_mtime),
        .rdev_major = sx.stx_rdev_major,
        .rdev_minor = sx.stx_rdev_minor,
        .dev_major = sx.stx_dev_major,
        .dev_minor = sx.stx_dev_minor,
    };
    return PyBytes_FromStringAndSize((char *)&out, sizeof out);
}

/* -- the module -- */

static PyMethodDef functions[] = {
    {"fstat", py_fstat, METH_O, NULL},
    FAST(fstatat), FAST(open_path), FAST(statx_out), {0},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "volfs.fs.native._records",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__records(void)
{
    if (PyType_Ready(&status_type) < 0)
        return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (module && (PyModule_AddFunctions(module, directory_functions) < 0 ||
                   PyModule_AddObjectRef(module, "Status", (PyObject *)&status_type) < 0))
        Py_CLEAR(module);
    return module;
}
