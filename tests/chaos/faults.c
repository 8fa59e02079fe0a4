/* Faults that a machine can have, switched on and off from outside while a process runs (LD_PRELOAD).

   The file named by RIL_CHAOS_PAGE holds four 64-bit integers, which tests/chaos/faults.py writes:
     full      1: writing to files below RIL_CHAOS_FOLDER fails with ENOSPC
     loss      1: sending and receiving over TCP fails with ECONNRESET, connecting with ENETUNREACH
     clock     nanoseconds added to the time of day; monotonic clocks are left alone
     failures  how many calls failed: counted here */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct page { volatile int64_t full, loss, clock, failures; };
static struct page none;
static struct page *page = &none;
static const char *folder;

__attribute__((constructor)) static void open_page(void) {
  const char *name = getenv("RIL_CHAOS_PAGE");
  folder = getenv("RIL_CHAOS_FOLDER");
  int file = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *found = mmap(NULL, sizeof(struct page), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (found != MAP_FAILED) page = found;
  close(file);
}

static int fail(int error) {
  __sync_fetch_and_add(&page->failures, 1);
  errno = error;
  return -1;
}

static int is_on_full_disk(int file) {
  char link[64], path[4096];
  if (!page->full || !folder) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length <= 0) return 0;
  path[length] = 0;
  return strncmp(path, folder, strlen(folder)) == 0;
}

static int is_cut_off(int socket) {
  struct sockaddr_storage address;
  socklen_t length = sizeof address;
  if (!page->loss) return 0;
  if (getsockname(socket, (struct sockaddr *)&address, &length)) return 0;
  return address.ss_family == AF_INET || address.ss_family == AF_INET6;
}

#define NEXT(name) static __typeof__(name) *next; if (!next) next = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define ON_DISK(name, type, parameters, file, arguments) \
  type name parameters { NEXT(name); return is_on_full_disk(file) ? fail(ENOSPC) : next arguments; }

ON_DISK(write, ssize_t, (int file, const void *data, size_t size), file, (file, data, size))
ON_DISK(pwrite, ssize_t, (int file, const void *data, size_t size, off_t at), file, (file, data, size, at))
ON_DISK(pwrite64, ssize_t, (int file, const void *data, size_t size, off64_t at), file, (file, data, size, at))
ON_DISK(writev, ssize_t, (int file, const struct iovec *parts, int count), file, (file, parts, count))
ON_DISK(ftruncate, int, (int file, off_t size), file, (file, size))
ON_DISK(ftruncate64, int, (int file, off64_t size), file, (file, size))
ON_DISK(fsync, int, (int file), file, (file))

int posix_fallocate(int file, off_t at, off_t size) {
  NEXT(posix_fallocate);
  if (!is_on_full_disk(file)) return next(file, at, size);
  fail(ENOSPC);
  return ENOSPC;
}

#define ON_NET(name, type, parameters, socket, error, arguments) \
  type name parameters { NEXT(name); return is_cut_off(socket) ? fail(error) : next arguments; }

ON_NET(send, ssize_t, (int s, const void *data, size_t size, int flags), s, ECONNRESET, (s, data, size, flags))
ON_NET(recv, ssize_t, (int s, void *data, size_t size, int flags), s, ECONNRESET, (s, data, size, flags))
ON_NET(sendmsg, ssize_t, (int s, const struct msghdr *message, int flags), s, ECONNRESET, (s, message, flags))
ON_NET(recvmsg, ssize_t, (int s, struct msghdr *message, int flags), s, ECONNRESET, (s, message, flags))
ON_NET(connect, int, (int s, const struct sockaddr *to, socklen_t length), s, ENETUNREACH, (s, to, length))

int clock_gettime(clockid_t which, struct timespec *now) {
  NEXT(clock_gettime);
  int result = next(which, now);
  if (result == 0 && page->clock && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) {
    int64_t moved = (int64_t)now->tv_sec * 1000000000 + now->tv_nsec + page->clock;
    now->tv_sec = moved / 1000000000;
    now->tv_nsec = moved % 1000000000;
  }
  return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  NEXT(gettimeofday);
  int result = next(now, zone);
  if (result == 0) now->tv_sec += page->clock / 1000000000;
  return result;
}

time_t time(time_t *out) {
  NEXT(time);
  time_t now = next(NULL) + page->clock / 1000000000;
  if (out) *out = now;
  return now;
}
