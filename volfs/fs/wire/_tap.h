/* What the two halves of the tap share: its hooks on the wire, and its functions for Python.
 *
 * The structures of the wire are those of <linux/fuse.h>. All state is guarded by the GIL, except
 * where said.
 */
#ifndef VOLFS_TAP_H
#define VOLFS_TAP_H

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

enum { OPCODES = 128 }; /* one more than the greatest opcode that can be tapped */
enum { ERRORS = 512 };  /* the kernel takes errnos below this (fuse_dev_do_write, fs/fuse/dev.c) */

struct tap {
    int fd; /* of the mounted session, else -1 */
    PyObject *on_request[OPCODES], *on_reply[OPCODES], *on_abandoned;
    PyObject *awaited;         /* unique of a passed request: (reply callback, request body) */
    atomic_int awaited_count;  /* len(awaited), for threads without the GIL */
    uint64_t counts[OPCODES];  /* [0]: requests with unknown opcodes */
    int turn, spin, linger_ms; /* see set_drain */
    int vain;                  /* spins, then waits without spinning, since a spin found something */
};

extern struct tap tap;

/* Answer a request: 0 or an errno. ENOENT: the kernel has given the request up. */
int answer(int fd, uint64_t unique, int error, const void *body, size_t length);

/* What libfuse is to read and write its descriptor with. */
ssize_t read_hook(int fd, void *buf, size_t size, void *userdata);
ssize_t writev_hook(int fd, struct iovec *iov, int count, void *userdata);

#endif
