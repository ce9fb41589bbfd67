/* Products of a matrix of floats (F32, F16, BF16) with float activations.
 *
 * Compiled once for each weight type, with -DWEIGHT_F32, -DWEIGHT_F16 or -DWEIGHT_BF16. Sixteen rows are interleaved
 * column by column; the face is that of linear.c.
 */
#include <stdatomic.h>

#include "finish.h"
#include "lanes.h"
#include "linear.h"

#if defined(WEIGHT_F32)
typedef float Weight;
INLINE f32x16 weights(const Weight *w) { return load_f32(w); }
#elif defined(WEIGHT_F16)
typedef half Weight;
INLINE f32x16 weights(const Weight *w) { return from_half(w); }
#else
typedef uint16_t Weight;
INLINE f32x16 weights(const Weight *w) { return from_bfloat16(w); }
#endif

enum { PANEL_COLUMNS = 128, TOKENS_PER_PASS = 256, PREFETCH_BYTES = 2560, PARTS_PER_THREAD = 6 };

INLINE f32x16 add_product(f32x16 sum, f32x16 w, float x) { return fma_f32(w, all_f32(x), sum); }

/* One chain of sums, as for many tokens; its latency lets through more than memory delivers. */
static f32x16 rows_times_vector(const Weight *w, const float *x, long columns) {
  f32x16 sum = {0};
  long k = 0;
  for (; k + 4 <= columns; k += 4) {
    prefetch((const char *)(w + k * LANES) + PREFETCH_BYTES);
    if (sizeof(Weight) == 4) prefetch((const char *)(w + k * LANES) + PREFETCH_BYTES + 2 * VECTOR_BYTES);
    UNROLL for (int i = 0; i < 4; i++) sum = add_product(sum, weights(w + (k + i) * LANES), x[k + i]);
  }
  for (; k < columns; k++) sum = add_product(sum, weights(w + k * LANES), x[k]);
  return sum;
}

static void panel_times_tokens(f32x16 *sums, const f32x16 *panel, const float *x, long stride, long columns) {
  f32x16 sum[TOKENS_PER_TILE];
  UNROLL for (int t = 0; t < TOKENS_PER_TILE; t++) sum[t] = sums[t];
  for (long k = 0; k < columns; k++)
    UNROLL for (int t = 0; t < TOKENS_PER_TILE; t++) sum[t] = add_product(sum[t], panel[k], x[t * stride + k]);
  UNROLL for (int t = 0; t < TOKENS_PER_TILE; t++) sums[t] = sum[t];
}

static void rows_times_tokens(const Product *p, const Weight *w, long first_row, long first_token, long tokens) {
  f32x16 sums[TOKENS_PER_PASS], panel[PANEL_COLUMNS];
  const float *x = (const float *)p->activation + first_token * p->columns;
  memset(sums, 0, sizeof(f32x16) * tokens);
  for (long first = 0; first < p->columns; first += PANEL_COLUMNS) {
    long columns = p->columns - first < PANEL_COLUMNS ? p->columns - first : PANEL_COLUMNS;
    for (long k = 0; k < columns; k++) panel[k] = weights(w + (first + k) * LANES);
    long t = 0;
    for (; t + TOKENS_PER_TILE <= tokens; t += TOKENS_PER_TILE)
      panel_times_tokens(sums + t, panel, x + t * p->columns + first, p->columns, columns);
    for (; t < tokens; t++)
      for (long k = 0; k < columns; k++) sums[t] = add_product(sums[t], panel[k], x[t * p->columns + first + k]);
  }
  for (long t = 0; t < tokens; t++) finish_rows(p, first_token + t, first_row, sums[t]);
}

/* ---- what is exported ---- */

long packed_bytes(long rows, long columns) { return row_groups(rows) * LANES * columns * (long)sizeof(Weight); }

/* The row groups [first, last) of a product, on the calling thread. */
void multiply_groups(const Product *p, long first, long last) {
  for (long g = first; g < last; g++) {
    const Weight *w = (const Weight *)p->weights + g * LANES * p->columns;
    if (p->tokens == 1) finish_rows(p, 0, g * LANES, rows_times_vector(w, p->activation, p->columns));
    else
      for (long t = 0; t < p->tokens; t += TOKENS_PER_PASS)
        rows_times_tokens(p, w, g * LANES, t, p->tokens - t < TOKENS_PER_PASS ? p->tokens - t : TOKENS_PER_PASS);
  }
}

typedef struct {
  Weight *to;
  const Weight *const *rows;
  long num_rows, columns;
  atomic_long damaged;
  unsigned parts;
} PackTask;

static void pack_part(void *arg, unsigned part) {
  PackTask *task = arg;
  long groups = row_groups(task->num_rows), last = pool_first(groups, part + 1, task->parts);
  for (long g = pool_first(groups, part, task->parts); g < last; g++) {
    Weight *to = task->to + g * LANES * task->columns;
    for (int row = 0; row < LANES; row++) {
      int there = g * LANES + row < task->num_rows;
      const Weight *from = there ? task->rows[g * LANES + row] : NULL;
      for (long k = 0; k < task->columns; k++) to[k * LANES + row] = there ? from[k] : 0;
    }
    f32x16 zero = {0};
    for (long k = 0; k < task->columns; k++) zero += weights(to + k * LANES) - weights(to + k * LANES);
    task->damaged += sum_lanes(zero) != 0; /* infinity less itself is no number */
  }
}

/* `rows` points to each row as it lies in the file, so a matrix may be put together from several, in any order.
 * Returns how many pieces hold a weight that is not finite. */
long pack(Pool *pool, void *to, const void *const *rows, long num_rows, long columns) {
  PackTask task = {to, (const Weight *const *)rows, num_rows, columns, 0,
                   pool_parts(pool, row_groups(num_rows), PARTS_PER_THREAD)};
  pool->run(pool, pack_part, &task, task.parts);
  return task.damaged;
}

void unpack_row(float *to, const void *packed, long row, long columns) {
  const Weight *w = (const Weight *)packed + row / LANES * LANES * columns;
  for (long k = 0; k < columns; k++) to[k] = weights(w + k * LANES)[row % LANES];
}
