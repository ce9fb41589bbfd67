/* Runs many short loops over a pool and counts every part; see test_pool.py. */
#include "pool.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_PARTS = 64 };

typedef struct {
  unsigned loop;
  unsigned ran[MOST_PARTS]; /* the loop each part last ran in: two threads on one part, or one left out, show here */
  atomic_uint count;
} Loop;

static void mark(void *arg, unsigned part) {
  Loop *loop = arg;
  loop->ran[part] = loop->loop;
  atomic_fetch_add_explicit(&loop->count, 1, memory_order_relaxed);
}

/* How many of `loops` loops ran a part not at all, or more often than once. The number of parts changes from loop to
 * loop, and the argument's memory is reused at once, so that a late thread would be seen. */
long count_wrong_loops(Pool *pool, long loops, unsigned most_parts, unsigned seed) {
  long wrong = 0;
  Loop loop;
  memset(&loop, 0, sizeof loop);
  for (long i = 1; i <= loops; i++) {
    seed = seed * 1664525u + 1013904223u;
    unsigned parts = 1 + (seed >> 16) % most_parts;
    loop.loop = (unsigned)i;
    atomic_store(&loop.count, 0);
    pool->run(pool, mark, &loop, parts);
    int good = atomic_load(&loop.count) == parts;
    for (unsigned part = 0; part < parts; part++) good &= loop.ran[part] == (unsigned)i;
    wrong += !good;
  }
  return wrong;
}

typedef struct {
  Pool *pool;
  atomic_uint count;
} Nest;

static void count_one(void *arg, unsigned part) {
  (void)part;
  atomic_fetch_add(&((Nest *)arg)->count, 1);
}
static void run_inner(void *arg, unsigned part) {
  (void)part;
  Nest *nest = arg;
  nest->pool->run(nest->pool, count_one, nest, 5);
}

/* A loop within a loop: how many inner parts ran. */
unsigned count_nested(Pool *pool, unsigned parts) {
  Nest nest = {.pool = pool};
  pool->run(pool, run_inner, &nest, parts);
  return atomic_load(&nest.count);
}
