// Calls of the C library that fail when they are told to, for LD_PRELOAD. `faults_arm` has the n-th call of one kind fail from then on,
// counted over all threads; until then, and after `faults_disarm`, nothing fails. glibc alone: the calls go on to what it exports
// under names of its own, or to the system.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { NONE, MEMORY, OWN_MEMORY, OPEN, READ, WRITE, SYNC, RENAME };

static _Atomic int armed = NONE, error_number = 0;
static _Atomic long calls = 0, first = 0, count = 0;
static _Atomic size_t least = 0;
static _Atomic uintptr_t own_begin = 0, own_end = 0;
static _Thread_local const void* new_caller = NULL;  // who called the operator new that this thread is in
static char* asked = NULL;  // the file of the library whose allocation failed last
enum { NAME = 4096 };

// From now on the calls of this kind are counted from 1, and those from the n-th on fail, `times` of them. Of allocations those below
// `least_bytes` do not count.
void faults_arm(int kind, long n, long times, int number, size_t least_bytes) {
  armed = NONE;
  calls = 0;
  first = n;
  count = times;
  error_number = number;
  least = least_bytes;
  armed = kind;
}

// The code whose allocations are OWN_MEMORY.
void faults_own(uintptr_t begin, uintptr_t end) {
  own_begin = begin;
  own_end = end;
}

// Room for the name of the library whose allocation failed last, which forks of this process share with it.
const char* faults_asked(void) {
  if (asked == NULL) asked = mmap(NULL, NAME, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  return asked;
}

// Nothing fails any more. Returns how many calls there were.
long faults_disarm(void) {
  armed = NONE;
  return calls;
}

static int fails(enum kind kind) {
  if (armed != (int)kind) return 0;
  const long number = ++calls;
  if (number < first || number - first >= count) return 0;
  errno = error_number;
  return 1;
}

static int is_own(const void* caller) { return (uintptr_t)caller >= own_begin && (uintptr_t)caller < own_end; }

static int lacks(size_t size, const void* caller) {
  if (armed != MEMORY && armed != OWN_MEMORY) return 0;
  if (new_caller != NULL) caller = new_caller;
  if (armed == MEMORY ? size < least : !is_own(caller)) return 0;
  if (!fails((enum kind)armed)) return 0;
  Dl_info library;
  if (asked != NULL && dladdr(caller, &library) != 0) strncpy(asked, library.dli_fname, NAME - 1);
  return 1;
}

// ---- memory

extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);

#define LACKS(size) lacks(size, __builtin_return_address(0))

void* malloc(size_t size) { return LACKS(size) ? NULL : __libc_malloc(size); }
void* calloc(size_t items, size_t size) { return LACKS(items * size) ? NULL : __libc_calloc(items, size); }
void* realloc(void* memory, size_t size) { return size != 0 && LACKS(size) ? NULL : __libc_realloc(memory, size); }
void* memalign(size_t alignment, size_t size) { return LACKS(size) ? NULL : __libc_memalign(alignment, size); }
void* aligned_alloc(size_t alignment, size_t size) { return LACKS(size) ? NULL : __libc_memalign(alignment, size); }

static void leave_new(const void* const* outside) { new_caller = *outside; }

// The operator new of C++, by its mangled name, which calls malloc from another library than the one that asks, and may throw.
void* _Znwm(size_t size) {
  static void* (*next)(size_t);
  if (next == NULL) *(void**)&next = dlsym(RTLD_NEXT, "_Znwm");
  __attribute__((cleanup(leave_new))) const void* const outside = new_caller;
  new_caller = __builtin_return_address(0);
  return next(size);
}

int posix_memalign(void** memory, size_t alignment, size_t size) {
  if (alignment % sizeof(void*) != 0 || (alignment & (alignment - 1)) != 0) return EINVAL;
  if (LACKS(size)) return ENOMEM;
  void* made = __libc_memalign(alignment, size);
  if (made == NULL) return ENOMEM;
  *memory = made;
  return 0;
}

// ---- files

static int open_at(int folder, const char* path, int flags, mode_t mode) {
  return fails(OPEN) ? -1 : (int)syscall(SYS_openat, folder, path, flags, mode);
}

#define MODE_OF(flags)                              \
  mode_t mode = 0;                                  \
  if ((flags) & (O_CREAT | __O_TMPFILE)) {          \
    va_list rest;                                   \
    va_start(rest, flags);                          \
    mode = va_arg(rest, mode_t);                    \
    va_end(rest);                                   \
  }

int open(const char* path, int flags, ...) {
  MODE_OF(flags)
  return open_at(AT_FDCWD, path, flags, mode);
}
int open64(const char* path, int flags, ...) {
  MODE_OF(flags)
  return open_at(AT_FDCWD, path, flags, mode);
}
int openat(int folder, const char* path, int flags, ...) {
  MODE_OF(flags)
  return open_at(folder, path, flags, mode);
}
int openat64(int folder, const char* path, int flags, ...) {
  MODE_OF(flags)
  return open_at(folder, path, flags, mode);
}

ssize_t read(int file, void* bytes, size_t size) { return fails(READ) ? -1 : syscall(SYS_read, file, bytes, size); }
ssize_t pread(int file, void* bytes, size_t size, off_t at) { return fails(READ) ? -1 : syscall(SYS_pread64, file, bytes, size, at); }
ssize_t pread64(int file, void* bytes, size_t size, off_t at) { return fails(READ) ? -1 : syscall(SYS_pread64, file, bytes, size, at); }

ssize_t write(int file, const void* bytes, size_t size) { return fails(WRITE) ? -1 : syscall(SYS_write, file, bytes, size); }
ssize_t writev(int file, const struct iovec* parts, int n) { return fails(WRITE) ? -1 : syscall(SYS_writev, file, parts, n); }

int fsync(int file) { return fails(SYNC) ? -1 : (int)syscall(SYS_fsync, file); }

int rename(const char* from, const char* to) {
  return fails(RENAME) ? -1 : (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}
int linkat(int from_folder, const char* from, int to_folder, const char* to, int flags) {
  return fails(RENAME) ? -1 : (int)syscall(SYS_linkat, from_folder, from, to_folder, to, flags);
}
