/* Turns float activations into what the matrix libraries read, normalising them on the way if asked to.
 *
 * Without `norm`, x itself; with it, RMSNorm: x / sqrt(mean(x^2) + epsilon) * norm (Zhang and Sennrich,
 * arXiv 1910.07467).
 */
#include "activation.h"

enum { COLUMNS_AT_ONCE = 512, PARTS_PER_THREAD = 2 };

float rms_factor(const float *x, long columns, float epsilon) {
  f32x16 squares[2] = {{0}};
  long i = 0;
  for (; i + 2 * LANES <= columns; i += 2 * LANES) {
    f32x16 a = load_f32(x + i), b = load_f32(x + i + LANES);
    squares[0] = fma_f32(a, a, squares[0]);
    squares[1] = fma_f32(b, b, squares[1]);
  }
  float sum = sum_lanes(squares[0] + squares[1]);
  for (; i < columns; i++) sum += x[i] * x[i];
  return 1.0f / __builtin_sqrtf(sum / (float)columns + epsilon);
}

static void normalise_some(float *to, const float *x, const float *norm, float factor, long columns) {
  for (long i = 0; i < columns; i++) to[i] = x[i] * factor * norm[i];
}

static const float *row_of(const Normalise *n, long token) {
  return n->x + (n->rows ? n->rows[token] : token) * n->stride;
}

/* Columns [first, last) of one token, a few hundred at a time so that the normalised values never leave the first-level
 * cache. */
static void quantise_columns(const Normalise *n, void *to, long token, long first, long last) {
  const float *x = row_of(n, token);
  float factor = n->norm ? rms_factor(x, n->columns, n->epsilon) : 1;
  float normalised[COLUMNS_AT_ONCE];
  for (long begin = first; begin < last; begin += COLUMNS_AT_ONCE) {
    long width = last - begin < COLUMNS_AT_ONCE ? last - begin : COLUMNS_AT_ONCE;
    const float *from = x + begin;
    if (n->norm) {
      normalise_some(normalised, from, n->norm + begin, factor, width);
      from = normalised;
    }
    for (long i = 0; i < width; i += GROUP) {
      long block = (begin + i) / GROUP;
      if (n->tokens == 1) {
        quantise_into_vector((Activation *)to + block, from + i);
      } else {
        long tile = token / TOKENS_PER_TILE * (n->columns / GROUP);
        quantise_into_tile((ActivationTile *)to + tile + block, from + i, (int)(token % TOKENS_PER_TILE));
      }
    }
  }
}

typedef struct {
  const Normalise *n;
  void *to;
  long items; /* tiles times their pieces when quantising, tokens when only normalising */
  long pieces; /* that a tile's columns are cut into: its tokens share cache lines, so threads share no columns */
  unsigned parts;
} Task;

static void quantise_part(void *arg, unsigned part) {
  const Task *task = arg;
  const Normalise *n = task->n;
  long blocks = n->columns / GROUP, last = pool_first(task->items, part + 1, task->parts);
  for (long item = pool_first(task->items, part, task->parts); item < last; item++) {
    long tile = item / task->pieces, piece = item % task->pieces;
    long begin = blocks * piece / task->pieces * GROUP, end = blocks * (piece + 1) / task->pieces * GROUP;
    long token = tile * TOKENS_PER_TILE, last_token = token + TOKENS_PER_TILE;
    /* The places of tokens that are not there keep what they held: products of it are never looked at. */
    for (; token < last_token && token < n->tokens; token++) quantise_columns(n, task->to, token, begin, end);
  }
}

void quantise(Pool *pool, const Normalise *n, void *to) {
  if (n->tokens == 1) {
    quantise_columns(n, to, 0, 0, n->columns);
    return;
  }
  long tiles = (n->tokens + TOKENS_PER_TILE - 1) / TOKENS_PER_TILE, wanted = (long)pool->threads * PARTS_PER_THREAD;
  Task task = {n, to, 0, 1, 0};
  if (pool->threads > 1 && tiles < wanted) task.pieces = (wanted + tiles - 1) / tiles;
  task.items = tiles * task.pieces;
  task.parts = pool_parts(pool, task.items, PARTS_PER_THREAD);
  pool->run(pool, quantise_part, &task, task.parts);
}

static void normalise_part(void *arg, unsigned part) {
  const Task *task = arg;
  const Normalise *n = task->n;
  long last = pool_first(task->items, part + 1, task->parts);
  for (long token = pool_first(task->items, part, task->parts); token < last; token++) {
    const float *x = row_of(n, token);
    float *to = (float *)task->to + token * n->columns;
    if (n->norm) normalise_some(to, x, n->norm, rms_factor(x, n->columns, n->epsilon), n->columns);
    else memcpy(to, x, sizeof(float) * n->columns);
  }
}

void normalise(Pool *pool, const Normalise *n, float *to) {
  Task task = {n, to, n->tokens, 1, 0};
  task.parts = pool_parts(pool, task.items, PARTS_PER_THREAD);
  pool->run(pool, normalise_part, &task, task.parts);
}

long activation_bytes(long tokens, long columns) {
  long blocks = columns / GROUP;
  if (tokens == 1) return blocks * (long)sizeof(Activation);
  return (tokens + TOKENS_PER_TILE - 1) / TOKENS_PER_TILE * blocks * (long)sizeof(ActivationTile);
}
