/* Rows of the KV cache in half precision.
 *
 * Of one head in one span: keys [SPAN / 16][head size][16], sixteen positions side by side, so that a score needs no sum
 * across a register; values [SPAN][head size]. The head size is rounded up to sixteen; what is added stays zero.
 */
enum { MOST_ROW_BYTES = MOST_HEAD_SIZE * 2 };

static long padded_head_size(long head_size) { return (head_size + LANES - 1) / LANES * LANES; }

/* A head's keys in a span, and as many for its values. */
static long part_bytes(long head_size) { return SPAN * padded_head_size(head_size) * (long)sizeof(half); }

long row_bytes(long head_size) { return head_size * (long)sizeof(half); }

static void convert_row(void *row, const float *x, long head_size) {
  for (long d = 0; d < head_size; d += LANES) {
    float values[LANES] = {0};
    half rounded[LANES];
    long rest = head_size - d < LANES ? head_size - d : LANES;
    memcpy(values, x + d, sizeof(float) * rest);
    to_half(rounded, load_f32(values));
    memcpy((half *)row + d, rounded, sizeof(half) * rest);
  }
}

INLINE half *key_at(char *keys, long position, long head_size) {
  return (half *)keys + position / LANES * LANES * padded_head_size(head_size) + position % LANES;
}
INLINE half *value_at(char *values, long position, long head_size) {
  return (half *)values + position * padded_head_size(head_size);
}

static void put_key(char *keys, long position, const void *row, long head_size) {
  half *to = key_at(keys, position, head_size);
  for (long d = 0; d < head_size; d++) to[d * LANES] = ((const half *)row)[d];
}
static void get_key(void *row, char *keys, long position, long head_size) {
  const half *from = key_at(keys, position, head_size);
  for (long d = 0; d < head_size; d++) ((half *)row)[d] = from[d * LANES];
}
static void put_value(char *values, long position, const void *row, long head_size) {
  memcpy(value_at(values, position, head_size), row, sizeof(half) * head_size);
}
static void get_value(void *row, char *values, long position, long head_size) {
  memcpy(row, value_at(values, position, head_size), sizeof(half) * head_size);
}

/* The queries of a tile, element by element. */
typedef struct {
  float at[MOST_HEAD_SIZE][QUERIES];
} Queries;

INLINE void set_queries(Queries *q, const float *const *from, long head_size, const int rows) {
  for (long d = 0; d < head_size; d++)
    UNROLL for (int r = 0; r < rows; r++) q->at[d][r] = from[r][d];
  for (long d = head_size; d < padded_head_size(head_size); d++)
    UNROLL for (int r = 0; r < rows; r++) q->at[d][r] = 0;
}

/* scores[row][position] for `blocks` times sixteen positions from block `from` on. Each score is one chain of sums, and
 * enough of them run side by side to hide how long a sum takes. */
INLINE void score_blocks(float scores[QUERIES][SPAN], const Queries *q, const char *keys, const char *next, long padded,
                         long from, const int rows, const int blocks) {
  f32x16 sum[MOST_SUMS] = {{0}};
  long block = padded * LANES;
  const half *key = (const half *)keys + from * block, *later = (const half *)next + from * block;
  for (long d = 0; d < padded; d += 2, key += 2 * LANES, later += 2 * LANES) {
    UNROLL for (int b = 0; b < blocks; b++) prefetch_later(later + b * block);
    UNROLL for (int odd = 0; odd < 2; odd++) {
      f32x16 k[SPAN_BLOCKS];
      UNROLL for (int b = 0; b < blocks; b++) k[b] = from_half(key + b * block + odd * LANES);
      UNROLL for (int r = 0; r < rows; r++) {
        f32x16 x = all_f32(q->at[d + odd][r]);
        UNROLL for (int b = 0; b < blocks; b++) sum[r * blocks + b] = fma_f32(k[b], x, sum[r * blocks + b]);
      }
    }
  }
  UNROLL for (int r = 0; r < rows; r++)
    UNROLL for (int b = 0; b < blocks; b++) store_f32(scores[r] + (from + b) * LANES, sum[r * blocks + b]);
}

/* o[row][d] += sum of weights[row][t] * values[t][d] for a few vectors of d, each in one chain. */
INLINE void add_vectors(float *o, const float weights[QUERIES][SPAN], const half *values, const half *next,
                        long padded, long count, const int rows, const int vectors) {
  f32x16 sum[MOST_SUMS];
  UNROLL for (int r = 0; r < rows; r++)
    UNROLL for (int i = 0; i < vectors; i++) sum[r * vectors + i] = load_f32(o + r * MOST_HEAD_SIZE + i * LANES);
  for (long t = 0; t < count; t++, values += padded, next += padded) {
    f32x16 v[MOST_VECTORS];
    UNROLL for (int i = 0; i < vectors; i += 2) prefetch_later(next + i * LANES);
    UNROLL for (int i = 0; i < vectors; i++) v[i] = from_half(values + i * LANES);
    UNROLL for (int r = 0; r < rows; r++) {
      f32x16 w = all_f32(weights[r][t]);
      UNROLL for (int i = 0; i < vectors; i++) sum[r * vectors + i] = fma_f32(v[i], w, sum[r * vectors + i]);
    }
  }
  UNROLL for (int r = 0; r < rows; r++)
    UNROLL for (int i = 0; i < vectors; i++) store_f32(o + r * MOST_HEAD_SIZE + i * LANES, sum[r * vectors + i]);
}

/* The same for all of d, over the first `count` positions of a span. */
INLINE void add_values(float o[QUERIES][MOST_HEAD_SIZE], const float weights[QUERIES][SPAN], const char *values,
                       const char *next, long padded, long count, const int rows) {
  const int fit = POWER_OF_TWO_UP_TO(SUMS_AT_ONCE / rows), at_once = fit < MOST_VECTORS ? fit : MOST_VECTORS;
  const half *value = (const half *)values, *later = (const half *)next;
  long d = 0;
  for (; d + at_once * LANES <= padded; d += at_once * LANES)
    add_vectors(o[0] + d, weights, value + d, later + d, padded, count, rows, at_once);
  if (at_once > 1)
    for (; d < padded; d += LANES) add_vectors(o[0] + d, weights, value + d, later + d, padded, count, rows, 1);
}
