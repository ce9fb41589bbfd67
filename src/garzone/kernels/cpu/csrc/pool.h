/* A thread pool whose parallel loops are short: tens of microseconds each, hundreds for every token.
 *
 * Knows nothing of tensors. Every kernel library includes this header; only pool.c is compiled once, so that all
 * kernels of a process share one set of threads.
 */
#ifndef GARZONE_POOL_H
#define GARZONE_POOL_H

typedef struct Pool Pool;

/* One part of a loop: `part` is in [0, parts). Parts may run on any thread, in any order, at the same time. */
typedef void (*PoolTask)(void *arg, unsigned part);

/* The first fields are public; the rest belongs to pool.c. */
struct Pool {
  /* Runs task(arg, 0) .. task(arg, parts - 1) and returns when all have returned. The caller works too. */
  void (*run)(Pool *pool, PoolTask task, void *arg, unsigned parts);
  unsigned threads; /* how many run parts, the caller included */
};

enum { POOL_MAX_PARTS = 0xffff }; /* the count has sixteen bits in the ticket */

/* Parts for a loop over `items` equal items: a few for each thread, so that a thread which the system took away for a
 * while does not hold up the others, yet each large enough to read memory in long runs. */
static inline unsigned pool_parts(const Pool *pool, long items, unsigned parts_per_thread) {
  long parts = pool->threads > 1 ? (long)pool->threads * parts_per_thread : 1;
  return (unsigned)(items < parts ? items : parts);
}

/* First item of a part: the items are dealt out evenly, in order. */
static inline long pool_first(long items, unsigned part, unsigned parts) { return items * part / parts; }

#endif
