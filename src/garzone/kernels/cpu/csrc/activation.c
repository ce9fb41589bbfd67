/* Turns float activations into what the matrix libraries read, normalising them on the way if asked to.
 *
 * Without `norm`, x itself; with it, RMSNorm: x / sqrt(mean(x^2) + epsilon) * norm (Zhang and Sennrich, arXiv 1910.07467).
 */
#include "activation.h"
#include "pool.h"

typedef struct {
  const float *x;    /* [tokens][columns] */
  const float *norm; /* [columns], or NULL */
  float epsilon;
  long tokens, columns;
  void *to;          /* Activation[columns / 32] for one token, else ActivationTile[tiles][columns / 32] */
} Quantise;

enum { COLUMNS_AT_ONCE = 512, PARTS_PER_THREAD = 2 };

static float rms_factor(const float *x, long columns, float epsilon) {
  f32x16 squares[2] = {{0}};
  long i = 0;
  for (; i + 2 * LANES <= columns; i += 2 * LANES) {
    f32x16 a = load_f32(x + i), b = load_f32(x + i + LANES);
    squares[0] += a * a;
    squares[1] += b * b;
  }
  float sum = sum_lanes(squares[0] + squares[1]);
  for (; i < columns; i++) sum += x[i] * x[i];
  return 1.0f / __builtin_sqrtf(sum / (float)columns + epsilon);
}

static void normalise_some(float *to, const float *x, const float *norm, float factor, long columns) {
  for (long i = 0; i < columns; i++) to[i] = x[i] * factor * norm[i];
}

/* One token, a few hundred columns at a time so that the normalised values never leave the first-level cache. */
static void quantise_token(const Quantise *q, long token) {
  const float *x = q->x + token * q->columns;
  float factor = q->norm ? rms_factor(x, q->columns, q->epsilon) : 1;
  float normalised[COLUMNS_AT_ONCE];
  for (long begin = 0; begin < q->columns; begin += COLUMNS_AT_ONCE) {
    long width = q->columns - begin < COLUMNS_AT_ONCE ? q->columns - begin : COLUMNS_AT_ONCE;
    const float *from = x + begin;
    if (q->norm) {
      normalise_some(normalised, from, q->norm + begin, factor, width);
      from = normalised;
    }
    for (long i = 0; i < width; i += GROUP) {
      long block = (begin + i) / GROUP;
      if (q->tokens == 1) {
        quantise_into_vector((Activation *)q->to + block, from + i);
      } else {
        long tile = token / TOKENS_PER_TILE * (q->columns / GROUP);
        quantise_into_tile((ActivationTile *)q->to + tile + block, from + i, (int)(token % TOKENS_PER_TILE));
      }
    }
  }
}

typedef struct {
  const Quantise *quantise;
  long tiles;
  unsigned parts;
} Task;

static void quantise_part(void *arg, unsigned part) {
  const Task *task = arg;
  const Quantise *q = task->quantise;
  long last = pool_first(task->tiles, part + 1, task->parts);
  for (long tile = pool_first(task->tiles, part, task->parts); tile < last; tile++) {
    long end = (tile + 1) * TOKENS_PER_TILE < q->tokens ? (tile + 1) * TOKENS_PER_TILE : q->tokens;
    if (end < (tile + 1) * TOKENS_PER_TILE) { /* the places of tokens that are not there */
      long blocks = q->columns / GROUP;
      memset((ActivationTile *)q->to + tile * blocks, 0, sizeof(ActivationTile) * blocks);
    }
    for (long token = tile * TOKENS_PER_TILE; token < end; token++) quantise_token(q, token);
  }
}

void quantise(Pool *pool, const Quantise *q) {
  if (q->tokens == 1) {
    quantise_token(q, 0);
    return;
  }
  long tiles = (q->tokens + TOKENS_PER_TILE - 1) / TOKENS_PER_TILE;
  Task task = {q, tiles, pool_parts(pool, tiles, PARTS_PER_THREAD)};
  pool->run(pool, quantise_part, &task, task.parts);
}

long activation_bytes(long tokens, long columns) {
  long blocks = columns / GROUP;
  if (tokens == 1) return blocks * (long)sizeof(Activation);
  return (tokens + TOKENS_PER_TILE - 1) / TOKENS_PER_TILE * blocks * (long)sizeof(ActivationTile);
}
