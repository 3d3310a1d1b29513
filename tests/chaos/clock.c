/* Moves the wall clock of one process: preloaded, it adds the seconds that the file named by ASSAY_TEST_CLOCK holds (eight bytes,
   which may change at any time) to what the C library tells. The monotonic clock stays, as it does when a clock is set. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t none = 0;
static volatile int64_t *jump = &none;
static int (*true_clock)(clockid_t, struct timespec *);
static int (*true_wait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
static int (*true_c11_wait)(cnd_t *, mtx_t *, const struct timespec *);

__attribute__((constructor)) static void start(void) {
  const char *path = getenv("ASSAY_TEST_CLOCK");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  void *page = file >= 0 ? mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0) : MAP_FAILED;
  if (page != MAP_FAILED) jump = page;
  if (file >= 0) close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  if (!true_clock) true_clock = dlsym(RTLD_NEXT, "clock_gettime");
  int result = true_clock(clock, now);
  if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += *jump;
  return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec exact;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &exact);
  now->tv_sec = exact.tv_sec;
  now->tv_usec = exact.tv_nsec / 1000;
  return 0;
}

int timespec_get(struct timespec *now, int base) {
  clock_gettime(CLOCK_REALTIME, now);
  return base;
}

time_t time(time_t *result) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  if (result) *result = exact.tv_sec;
  return exact.tv_sec;
}

/* The kernel waits by the true clock, so a deadline on the moved one is moved back. Deadlines on the monotonic clock are small. */
static struct timespec true_time(const struct timespec *until) {
  struct timespec moved = *until;
  if (moved.tv_sec > 1000000000) moved.tv_sec -= *jump;
  return moved;
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
  struct timespec moved = true_time(until);
  if (!true_wait) true_wait = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
  if (!true_wait) true_wait = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
  return true_wait(condition, mutex, &moved);
}

/* librdkafka waits by C11; left out, its threads would spin while the clock is behind. */
int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex, const struct timespec *restrict until) {
  struct timespec moved = true_time(until);
  if (!true_c11_wait) true_c11_wait = dlsym(RTLD_NEXT, "cnd_timedwait");
  return true_c11_wait(condition, mutex, &moved);
}
