/* What getdents64(2) tells, in the records of the wire; see _records.pyi.
 *
 * System calls are made without the GIL: on a network filesystem they can take any time.
 */
#include "_records.h"

#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

struct dirent_raw { /* struct linux_dirent64 */
    uint64_t ino;
    int64_t off;
    unsigned short reclen;
    unsigned char type;
    char name[];
};

#define PADDED(size) (((size) + 7) & ~(size_t)7)
/* As in inodes/device.py: all bases have the first; a number of more than 32 bits is hashed. */
#define FOREIGN (1ULL << 47)
#define LARGE (1ULL << 46)

#define CHUNK 32768
#define USUAL_ENTRY 40 /* bytes of an entry in getdents64(2), with a name of up to 20 bytes */
#define LEAST_CHUNK 1024 /* getdents64(2) fails if not one entry fits; a vfat name takes 765 */

/*
 * getdents64(2) of about `wanted` bytes, without the GIL; a removed directory is at its end. -1
 * with errno. What is read beyond the reply's end is read again for the next one, so callers want
 * no more than they can reply, and read again if that was too little.
 */
static ssize_t read_directory(int fd, char *buffer, uint64_t wanted)
{
    ssize_t got;
    size_t size = wanted < LEAST_CHUNK ? LEAST_CHUNK : wanted > CHUNK ? CHUNK : (size_t)wanted;
    Py_BEGIN_ALLOW_THREADS
    got = syscall(SYS_getdents64, fd, buffer, size);
    Py_END_ALLOW_THREADS
    return got < 0 && errno == ENOENT ? 0 : got;
}

/* Set the position that the next read begins at; false with an exception set. */
static int seek(int fd, int64_t offset)
{
    off_t result;
    Py_BEGIN_ALLOW_THREADS
    result = lseek(fd, offset, SEEK_SET);
    Py_END_ALLOW_THREADS
    if (result < 0)
        failed();
    return result >= 0;
}

/* The number of an entry: Device.node_id does the same. Zero, as no file has it, is skipped by
   readers of directories. */
static uint64_t entry_number(uint64_t ino, uint64_t base)
{
    if (!base && ino)
        return ino;
    if (!base)
        base = FOREIGN;
    if (!(ino >> 32))
        return base | ino;
    uint64_t mixed = ino + base;
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9ULL;
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EBULL;
    return FOREIGN | LARGE | (mixed ^ mixed >> 31) >> 18;
}

static size_t put_record(char *at, uint64_t ino, uint64_t off, uint32_t type, const char *name,
                         size_t length)
{
    struct dirent_head *head = (struct dirent_head *)at; /* all begin at a multiple of 8 bytes */
    size_t size = PADDED(sizeof *head + length);
    char *end = at + sizeof *head + length;
    *head = (struct dirent_head){.ino = ino, .off = off, .namelen = (uint32_t)length, .type = type};
    memcpy(at + sizeof *head, name, length);
    memset(end, 0, (size_t)(at + size - end));
    return size;
}

static PyObject *py_list_bare(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    uint64_t n[6]; /* offset, room, plus, base, own number, parent's number */
    char buffer[CHUNK] __attribute__((aligned(8)));
    int fd = descriptor_and(args, count, 6, n);
    if (fd < 0 || !seek(fd, n[0]))
        return NULL;
    size_t room = (size_t)n[1], used = 0, head = n[2] ? sizeof(struct entry_out) : 0;
    size_t least = head + PADDED(sizeof(struct dirent_head) + 1);
    PyObject *reply = PyBytes_FromStringAndSize(NULL, room);
    if (!reply)
        return NULL;
    char *out = PyBytes_AS_STRING(reply);
    int full = 0;
    while (!full && !(used && room - used < least)) {
        /* An entry takes less in getdents64(2) than in a reply; with `head` about a quarter. */
        ssize_t got = read_directory(fd, buffer, head ? (room - used) / 4 : room - used);
        if (got < 0 && !used) {
            failed();
            Py_DECREF(reply);
            return NULL;
        }
        if (got <= 0) /* an error after entries is met again by the next request */
            break;
        for (ssize_t at = 0; at < got;) {
            const struct dirent_raw *found = (struct dirent_raw *)(buffer + at);
            size_t length = strlen(found->name);
            if (used + head + PADDED(sizeof(struct dirent_head) + length) > room) {
                full = 1;
                break;
            }
            uint64_t ino = entry_number(found->ino, n[3]);
            if (!strcmp(found->name, "."))
                ino = n[4];
            else if (!strcmp(found->name, ".."))
                ino = n[5];
            memset(out + used, 0, head);
            used += head;
            used += put_record(out + used, ino, found->off, found->type, found->name, length);
            at += found->reclen;
        }
    }
    if (full && !used) { /* an empty reply would be the end; so does getdents64(2) itself */
        Py_DECREF(reply);
        errno = EINVAL;
        return failed();
    }
    _PyBytes_Resize(&reply, used);
    return reply;
}

static PyObject *py_read_entries(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    (void)module;
    uint64_t n[2]; /* offset, count */
    char buffer[CHUNK] __attribute__((aligned(8)));
    int fd = descriptor_and(args, given, 2, n);
    if (fd < 0 || !seek(fd, n[0]))
        return NULL;
    PyObject *list = PyList_New(0);
    while (list && (uint64_t)PyList_GET_SIZE(list) < n[1]) {
        uint64_t missing = n[1] - PyList_GET_SIZE(list);
        ssize_t got = read_directory(fd, buffer, missing < CHUNK ? missing * USUAL_ENTRY : CHUNK);
        if (got < 0 && !PyList_GET_SIZE(list)) {
            failed();
            Py_DECREF(list);
            return NULL;
        }
        if (got <= 0)
            break;
        for (ssize_t at = 0; at < got && (uint64_t)PyList_GET_SIZE(list) < n[1];) {
            const struct dirent_raw *found = (struct dirent_raw *)(buffer + at);
            PyObject *entry = Py_BuildValue("(yKIK)", found->name, (unsigned long long)found->ino,
                                            (unsigned)found->type, (unsigned long long)found->off);
            if (!entry || PyList_Append(list, entry) < 0)
                Py_CLEAR(list);
            Py_XDECREF(entry);
            if (!list)
                break;
            at += found->reclen;
        }
    }
    return list;
}

static PyObject *py_direntplus(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    uint64_t n[3]; /* number, offset, type */
    char *entry, *name;
    Py_ssize_t size, length;
    if (count != 5 || !numbers(args + 1, 3, 3, n)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "5 arguments expected");
        return NULL;
    }
    if (PyBytes_AsStringAndSize(args[0], &entry, &size) < 0 ||
        PyBytes_AsStringAndSize(args[4], &name, &length) < 0)
        return NULL;
    if (size != sizeof(struct entry_out)) {
        PyErr_SetString(PyExc_ValueError, "a struct fuse_entry_out has 128 bytes");
        return NULL;
    }
    PyObject *reply =
        PyBytes_FromStringAndSize(NULL, size + PADDED(sizeof(struct dirent_head) + length));
    if (!reply)
        return NULL;
    memcpy(PyBytes_AS_STRING(reply), entry, size);
    put_record(PyBytes_AS_STRING(reply) + size, n[0], n[1], (uint32_t)n[2], name, length);
    return reply;
}

PyMethodDef directory_functions[] = {FAST(list_bare), FAST(read_entries), FAST(direntplus), {0}};
