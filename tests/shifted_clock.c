/* A library to preload: the wall clock of a process, and of all that it starts, is off by as many seconds as
 * the file $SHIFTED_CLOCK says, at every instant anew. The monotonic clock is as it is, and so are the times of
 * files: the kernel gives them.
 *
 *     cc -shared -fPIC -o shifted_clock.so shifted_clock.c -ldl
 *
 * libfaketime would do more than that, and breaks sleep() of Python 3.11.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *shift; /* seconds; in a file that is mapped, so that all see a change at once */

__attribute__((constructor)) static void map_shift(void) {
  const char *name = getenv("SHIFTED_CLOCK");
  int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *mapped = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
  if (mapped != MAP_FAILED) shift = mapped;
  close(file);
}

static int64_t seconds(void) { return shift ? *shift : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
  int failed = (int)syscall(SYS_clock_gettime, clock, now);
  if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += seconds();
  return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
  struct timespec exact;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &exact);
  now->tv_sec = exact.tv_sec;
  now->tv_usec = exact.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *into) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (into) *into = now.tv_sec;
  return now.tv_sec;
}

/* A deadline that was taken from the shifted clock is for the kernel, which knows no shift. One of the monotonic
 * clock is not this late: it would take 31 years without a reboot. */
int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *deadline) {
  typedef int (*wait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
  static wait real;
  struct timespec kernels = *deadline;
  if (!real) real = (wait)dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
  if (kernels.tv_sec > 1000000000) kernels.tv_sec -= seconds();
  return real(condition, mutex, &kernels);
}
