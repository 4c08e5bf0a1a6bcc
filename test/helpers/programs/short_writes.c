/* Preloaded: a write to a file takes as much as SHORT says: `1` a byte, `half` half of what is given. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static size_t shortened(int file, size_t count) {
  const char *how = getenv("SHORT");
  struct stat facts;
  if (how == NULL || count < 2 || fstat(file, &facts) != 0 || !S_ISREG(facts.st_mode)) return count;
  return strcmp(how, "half") == 0 ? count / 2 : 1;
}

ssize_t write(int file, const void *bytes, size_t count) {
  static ssize_t (*real)(int, const void *, size_t);
  if (real == NULL) real = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
  return real(file, bytes, shortened(file, count));
}
