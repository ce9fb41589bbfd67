/* The pool's threads. See pool.h for what it is for.
 *
 * A loop is published as one 64-bit ticket: generation, number of parts and next part in a single word, so that taking
 * a part is one compare-and-swap. All three must be in that word. Were the count beside it, a thread that was
 * interrupted between reading the count and taking a part could take a part of the *next* loop by the old count.
 *
 * A thread without work spins for some tens of microseconds, the time between two kernels of a token, and then sleeps.
 * The caller that waits for the last part does the same: if the thread that runs it has lost its core to another
 * program, the core that the caller leaves idle is where the system will put it.
 */
#include "pool.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#else
#include <sys/time.h>
#endif

enum {
  CACHE_LINE = 64,
  SPINS_BEFORE_SLEEP = 3000,   /* 40 to 120 us, by the length of the processor's pause */
  SLEEP_MS = 500,              /* no wake-up is ever lost by design; this bounds the damage if the design is wrong */
  COUNT_SHIFT = 16,
  GENERATION_SHIFT = 32,
};

typedef struct {
  Pool public;
  pthread_t *workers;
  unsigned num_workers;
  /* written by the caller of run, once a loop */
  _Alignas(CACHE_LINE) _Atomic uint64_t ticket; /* generation << 32 | parts << 16 | next part */
  _Atomic(PoolTask) task;
  _Atomic(void *) arg;
  /* written by everyone who finishes a part */
  _Alignas(CACHE_LINE) atomic_uint done;
  atomic_bool caller_sleeps;
  /* one loop at a time */
  _Alignas(CACHE_LINE) atomic_flag busy;
  /* sleeping */
  _Alignas(CACHE_LINE) atomic_uint wakes;
  atomic_uint sleepers;
  atomic_bool quit;
#if !defined(__linux__)
  pthread_mutex_t mutex;
  pthread_cond_t woken;
#endif
} Threads;

static inline void pause_briefly(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb"); /* `yield` is a no-op on most cores; isb waits about as long as x86's pause */
#endif
}

static inline int has_parts(uint64_t ticket) { return (ticket & 0xffff) < (ticket >> COUNT_SHIFT & 0xffff); }

/* Sleeps until the word is no longer `seen`, or for SLEEP_MS. */
static void sleep_while(Threads *threads, atomic_uint *word, unsigned seen) {
#if defined(__linux__)
  (void)threads;
  struct timespec limit = {.tv_sec = SLEEP_MS / 1000, .tv_nsec = SLEEP_MS % 1000 * 1000000L};
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, &limit, NULL, 0);
#else
  struct timeval now;
  gettimeofday(&now, NULL);
  long us = now.tv_usec + SLEEP_MS * 1000L;
  struct timespec limit = {.tv_sec = now.tv_sec + us / 1000000, .tv_nsec = us % 1000000 * 1000};
  pthread_mutex_lock(&threads->mutex);
  if (atomic_load(word) == seen) pthread_cond_timedwait(&threads->woken, &threads->mutex, &limit);
  pthread_mutex_unlock(&threads->mutex);
#endif
}

/* Wakes all who sleep on a word that has just changed. */
static void wake_sleepers(Threads *threads, atomic_uint *word) {
#if defined(__linux__)
  (void)threads;
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
#else
  (void)word;
  pthread_mutex_lock(&threads->mutex); /* whoever compared before the change is asleep by now */
  pthread_cond_broadcast(&threads->woken);
  pthread_mutex_unlock(&threads->mutex);
#endif
}

static void wake_workers(Threads *threads) {
  atomic_fetch_add(&threads->wakes, 1);
  wake_sleepers(threads, &threads->wakes);
}

/* Takes and runs parts until none is left.
 *
 * Task and argument are read before the swap. If the swap succeeds, the ticket was still that of the loop it was read
 * from, which cannot have ended as this part of it was not done, so they are that loop's. If it fails, they are
 * dropped. */
static void work(Threads *threads) {
  uint64_t ticket = atomic_load_explicit(&threads->ticket, memory_order_acquire);
  while (has_parts(ticket)) {
    PoolTask task = atomic_load_explicit(&threads->task, memory_order_relaxed);
    void *arg = atomic_load_explicit(&threads->arg, memory_order_relaxed);
    if (atomic_compare_exchange_weak_explicit(&threads->ticket, &ticket, ticket + 1, memory_order_acq_rel,
                                              memory_order_acquire)) {
      task(arg, (unsigned)(ticket & 0xffff));
      unsigned parts = ticket >> COUNT_SHIFT & 0xffff;
      if (atomic_fetch_add(&threads->done, 1) + 1 == parts && atomic_load(&threads->caller_sleeps))
        wake_sleepers(threads, &threads->done);
      ticket = atomic_load_explicit(&threads->ticket, memory_order_acquire);
    }
  }
}

static void *worker(void *arg) {
  Threads *threads = arg;
  unsigned idle = 0;
  while (!atomic_load_explicit(&threads->quit, memory_order_relaxed)) {
    if (has_parts(atomic_load_explicit(&threads->ticket, memory_order_acquire))) {
      work(threads);
      idle = 0;
    } else if (++idle < SPINS_BEFORE_SLEEP) {
      pause_briefly();
    } else {
      /* Announce first, look again after: either run() sees a sleeper, or this thread sees run()'s ticket. */
      unsigned seen = atomic_load(&threads->wakes);
      atomic_fetch_add(&threads->sleepers, 1);
      if (!has_parts(atomic_load(&threads->ticket)) && !atomic_load(&threads->quit))
        sleep_while(threads, &threads->wakes, seen);
      atomic_fetch_sub(&threads->sleepers, 1);
      idle = 0;
    }
  }
  return NULL;
}

static void wait_for_parts(Threads *threads, unsigned parts) {
  for (unsigned spins = 0; spins < SPINS_BEFORE_SLEEP; spins++) {
    if (atomic_load_explicit(&threads->done, memory_order_acquire) == parts) return;
    pause_briefly();
  }
  atomic_store(&threads->caller_sleeps, 1); /* announce first, look again after, as workers do */
  for (unsigned done; (done = atomic_load(&threads->done)) != parts;) sleep_while(threads, &threads->done, done);
  atomic_store(&threads->caller_sleeps, 0);
}

static void run(Pool *pool, PoolTask task, void *arg, unsigned parts) {
  Threads *threads = (Threads *)pool;
  /* Alone, with one part, within a part, or from a second thread: run it all here. */
  if (parts <= 1 || parts > POOL_MAX_PARTS || !threads->num_workers || atomic_flag_test_and_set(&threads->busy)) {
    for (unsigned part = 0; part < parts; part++) task(arg, part);
    return;
  }
  atomic_store_explicit(&threads->task, task, memory_order_relaxed);
  atomic_store_explicit(&threads->arg, arg, memory_order_relaxed);
  atomic_store_explicit(&threads->done, 0, memory_order_relaxed);
  uint64_t generation = (atomic_load_explicit(&threads->ticket, memory_order_relaxed) >> GENERATION_SHIFT) + 1;
  atomic_store(&threads->ticket, generation << GENERATION_SHIFT | (uint64_t)parts << COUNT_SHIFT);
  if (atomic_load(&threads->sleepers)) wake_workers(threads);
  work(threads);
  wait_for_parts(threads, parts);
  atomic_flag_clear(&threads->busy);
}

static void *allocate_threads(void) {
  size_t size = (sizeof(Threads) + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
  return aligned_alloc(CACHE_LINE, size);
}

void pool_stop(Pool *pool) {
  Threads *threads = (Threads *)pool;
  atomic_store(&threads->quit, 1);
  wake_workers(threads);
  for (unsigned i = 0; i < threads->num_workers; i++) pthread_join(threads->workers[i], NULL);
  free(threads->workers);
  free(threads);
}

/* A pool of `num_threads`, its caller included. With fewer threads than asked for if the system refuses; NULL only
 * without memory. */
Pool *pool_start(unsigned num_threads) {
  Threads *threads = allocate_threads();
  if (!threads) return NULL;
  *threads = (Threads){.public.run = run};
  atomic_flag_clear(&threads->busy);
#if !defined(__linux__)
  pthread_mutex_init(&threads->mutex, NULL);
  pthread_cond_init(&threads->woken, NULL);
#endif
  threads->workers = calloc(num_threads ? num_threads : 1, sizeof(pthread_t));
  /* Signals are for the program's own threads: a worker that took one would leave them asleep in a system call. */
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  while (threads->workers && threads->num_workers + 1 < num_threads) {
    if (pthread_create(&threads->workers[threads->num_workers], NULL, worker, threads)) break;
    threads->num_workers++;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  threads->public.threads = threads->num_workers + 1;
  return &threads->public;
}
