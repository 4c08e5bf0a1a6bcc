/* Preloaded: writes to descriptors above 2 that name a position take as much as SHORT says: `1` a byte,
   `half` half of what is given. The journal's are such; a process' start and its pipes are not. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

static size_t shortened(size_t count) {
  const char *how = getenv("SHORT");
  if (how == NULL || count < 2) return count;
  return strcmp(how, "half") == 0 ? count / 2 : 1;
}

ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t offset) {
  static ssize_t (*real)(int, const void *, size_t, off64_t);
  if (real == NULL) real = (ssize_t (*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64");
  return real(file, bytes, shortened(count), offset);
}

ssize_t pwrite(int file, const void *bytes, size_t count, off_t offset) {
  return pwrite64(file, bytes, count, offset);
}
