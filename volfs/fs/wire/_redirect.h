/* Redirecting a function that a loaded library calls in another one. */
#ifndef VOLFS_REDIRECT_H
#define VOLFS_REDIRECT_H

/* From now on the library with this handle of dlopen(3) calls `target` where it calls `symbol`.
 * Returns NULL, or why that cannot be done. */
const char *redirect(void *library, const char *symbol, void *target);

#endif
