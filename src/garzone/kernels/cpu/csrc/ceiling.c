/* What this machine can do at most: reading memory, multiplying eight-bit integers and floats. Kernels are held against
 * it. */
#include "lanes.h"
#include "pool.h"

enum { PREFETCH_BYTES = 4096, PARTS_PER_THREAD = 6, UNROLLED = 4, CHAINS = 12, MOST_PARTS = 1024 };

typedef struct {
  const char *from;
  long lines;
  unsigned parts;
  i32x16 sums[MOST_PARTS];
} ReadTask;

static void read_part(void *arg, unsigned part) {
  ReadTask *task = arg;
  long at = pool_first(task->lines, part, task->parts), last = pool_first(task->lines, part + 1, task->parts);
  i32x16 sum[UNROLLED] = {{0}};
  for (; at + UNROLLED <= last; at += UNROLLED) {
    const char *from = task->from + at * VECTOR_BYTES;
    UNROLL for (int i = 0; i < UNROLLED; i++) {
      prefetch(from + i * VECTOR_BYTES + PREFETCH_BYTES);
      sum[i] += load_i32(from + i * VECTOR_BYTES);
    }
  }
  task->sums[part] = sum[0] + sum[1] + sum[2] + sum[3];
}

/* Reads all of it once, on all threads. The result only keeps compilers from leaving it out. */
long read_once(Pool *pool, const void *from, long bytes) {
  static ReadTask task;
  task.from = from;
  task.lines = bytes / VECTOR_BYTES;
  task.parts = pool_parts(pool, task.lines, PARTS_PER_THREAD);
  if (task.parts > MOST_PARTS) task.parts = MOST_PARTS;
  pool->run(pool, read_part, &task, task.parts);
  long sum = 0;
  for (unsigned part = 0; part < task.parts; part++) sum += sum_lanes_i32(task.sums[part]);
  return sum;
}

typedef struct {
  long rounds;
  i32x16 out[64];
} DotTask;

static void dot_part(void *arg, unsigned part) {
  DotTask *task = arg;
  i32x16 sum[CHAINS];
  UNROLL for (int i = 0; i < CHAINS; i++) sum[i] = all_i32(i);
  u8x64 weights = (u8x64)all_i32(0x01020304);
  int32_t x = 0x01010101;
  for (long round = 0; round < task->rounds; round++) {
    __asm__ volatile("" : "+r"(x)); /* else a compiler could do all rounds at once */
    UNROLL for (int i = 0; i < CHAINS; i++) sum[i] = dot_unsigned(sum[i], weights, x);
  }
  i32x16 all = sum[0];
  for (int i = 1; i < CHAINS; i++) all += sum[i];
  task->out[part % 64] = all;
}

/* Each thread multiplies 64 pairs of bytes as often as it can; returns how many multiplications and additions it were. */
long dot_rounds(Pool *pool, long rounds) {
  static DotTask task;
  task.rounds = rounds;
  pool->run(pool, dot_part, &task, pool->threads);
  return (long)pool->threads * rounds * CHAINS * VECTOR_BYTES * 2;
}

typedef struct {
  long rounds;
  f32x16 out[64];
} FloatTask;

static void float_part(void *arg, unsigned part) {
  FloatTask *task = arg;
  f32x16 sum[CHAINS], factor = all_f32(0.5f);
  float x = 0.25f;
  UNROLL for (int i = 0; i < CHAINS; i++) sum[i] = all_f32((float)i);
  for (long round = 0; round < task->rounds; round++) {
    __asm__ volatile("" : "+m"(x));
    f32x16 term = all_f32(x);
    UNROLL for (int i = 0; i < CHAINS; i++) sum[i] = fma_f32(sum[i], factor, term);
  }
  f32x16 all = sum[0];
  for (int i = 1; i < CHAINS; i++) all += sum[i];
  task->out[part % 64] = all;
}

/* The same for floats. */
long float_rounds(Pool *pool, long rounds) {
  static FloatTask task;
  task.rounds = rounds;
  pool->run(pool, float_part, &task, pool->threads);
  return (long)pool->threads * rounds * CHAINS * LANES * 2;
}
