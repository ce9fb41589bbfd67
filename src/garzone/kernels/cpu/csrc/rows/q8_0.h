/* Rows of the KV cache in Q8_0: thirty-two signed bytes share a factor in half precision. The head size is a multiple of
 * thirty-two.
 *
 * Of one head in one span, bytes first and factors behind them, so that no load of bytes crosses a cache line:
 *   keys    [SPAN / 16][head size / 4][16][4], factors [SPAN / 16][head size / 32][16]
 *   values  [head size / 32][SPAN / 4][32][4], factors [head size / 32][SPAN]
 * The keys' bytes have the bias that dot_signed wants (lanes.h).
 *
 * Bytes are never widened: products of bytes add up four at a time, of elements for a score and of positions for values.
 * For that, what they are multiplied by is rounded to fifteen bits, in two bytes, and multiplied twice: that rounding is
 * a hundredth of the rows' own. Sums of integers are exact, whatever their order.
 */
enum {
  GROUP = 32,
  QUADS = GROUP / 4,
  MOST_GROUPS = MOST_HEAD_SIZE / GROUP,
  MOST_GROUPS_AT_ONCE = 4,
  LOW_BITS = 7,
  WHOLE = 127 << LOW_BITS, /* what the largest number becomes */
};
static const float LEAST = 1e-30f; /* all that is smaller counts as nothing */

typedef struct { half d; int8_t q[GROUP]; } Block;
enum { MOST_ROW_BYTES = MOST_GROUPS * sizeof(Block) };

static long padded_head_size(long head_size) { return head_size; }

/* A head's keys in a span, and as many for its values. */
static long part_bytes(long head_size) { return SPAN * head_size / GROUP * (long)sizeof(Block); }

long row_bytes(long head_size) { return head_size / GROUP * (long)sizeof(Block); }

/* Each byte is nearest with the factor as it is kept. */
static void convert_row(void *row, const float *x, long head_size) {
  Block *block = row;
  for (long g = 0; g < head_size / GROUP; g++, block++, x += GROUP) {
    f32x16 first = load_f32(x), second = load_f32(x + LANES);
    half d[LANES];
    to_half(d, all_f32(max_lanes(max_f32(abs_f32(first), abs_f32(second))) / 127));
    float kept = from_half(d)[0], inverse = kept > 0 ? 1 / kept : 0;
    f32x16 least = all_f32(-127), most = all_f32(127); /* factors next to zero are rounded by up to a half */
    block->d = d[0];
    store_low_bytes(block->q, round_to_int(min_f32(max_f32(first * inverse, least), most)));
    store_low_bytes(block->q + LANES, round_to_int(min_f32(max_f32(second * inverse, least), most)));
  }
}

INLINE uint8_t *key_at(char *keys, long position, long head_size) {
  return (uint8_t *)keys + position / LANES * LANES * head_size + position % LANES * 4;
}
INLINE half *key_factor_at(char *keys, long position, long head_size) {
  long groups = head_size / GROUP;
  return (half *)(keys + SPAN * head_size) + position / LANES * groups * LANES + position % LANES;
}
INLINE uint8_t *value_at(char *values, long position) { return (uint8_t *)values + position / 4 * GROUP * 4 + position % 4; }
INLINE half *value_factor_at(char *values, long position, long head_size) {
  return (half *)(values + SPAN * head_size) + position;
}
INLINE uint8_t biased(int8_t q) { return (uint8_t)(q + SIGNED_BIAS); }
INLINE int8_t unbiased(uint8_t q) { return (int8_t)(q - SIGNED_BIAS); }

static void put_key(char *keys, long position, const void *row, long head_size) {
  uint8_t *to = key_at(keys, position, head_size);
  half *factors = key_factor_at(keys, position, head_size);
  for (long d = 0; d < head_size; d++) to[d / 4 * LANES * 4 + d % 4] = biased(((const Block *)row)[d / GROUP].q[d % GROUP]);
  for (long g = 0; g < head_size / GROUP; g++) factors[g * LANES] = ((const Block *)row)[g].d;
}
static void get_key(void *row, char *keys, long position, long head_size) {
  const uint8_t *from = key_at(keys, position, head_size);
  const half *factors = key_factor_at(keys, position, head_size);
  for (long d = 0; d < head_size; d++) ((Block *)row)[d / GROUP].q[d % GROUP] = unbiased(from[d / 4 * LANES * 4 + d % 4]);
  for (long g = 0; g < head_size / GROUP; g++) ((Block *)row)[g].d = factors[g * LANES];
}
static void put_value(char *values, long position, const void *row, long head_size) {
  uint8_t *to = value_at(values, position);
  half *factors = value_factor_at(values, position, head_size);
  for (long g = 0; g < head_size / GROUP; g++) {
    const Block *block = (const Block *)row + g;
    for (long i = 0; i < GROUP; i++) to[g * SPAN * GROUP + i * 4] = (uint8_t)block->q[i];
    factors[g * SPAN] = block->d;
  }
}
static void get_value(void *row, char *values, long position, long head_size) {
  const uint8_t *from = value_at(values, position);
  const half *factors = value_factor_at(values, position, head_size);
  for (long g = 0; g < head_size / GROUP; g++) {
    Block *block = (Block *)row + g;
    for (long i = 0; i < GROUP; i++) block->q[i] = (int8_t)from[g * SPAN * GROUP + i * 4];
    block->d = factors[g * SPAN];
  }
}

/* The queries of a tile as (high * 2^LOW_BITS + low) * factor, four elements to a number. A sum of products starts with
 * what the bias of the keys' bytes adds to it. */
typedef struct {
  int32_t high[MOST_GROUPS][QUADS][QUERIES], low[MOST_GROUPS][QUADS][QUERIES];
  int32_t high_start[MOST_GROUPS][QUERIES], low_start[MOST_GROUPS][QUERIES];
  float factor[MOST_GROUPS][QUERIES];
} Queries;

INLINE void set_queries(Queries *q, const float *const *from, long head_size, const int rows) {
  for (int r = 0; r < rows; r++)
    for (long g = 0; g < head_size / GROUP; g++) {
      const float *x = from[r] + g * GROUP;
      float most = max_lanes(max_f32(abs_f32(load_f32(x)), abs_f32(load_f32(x + LANES))));
      float inverse = most > LEAST ? WHOLE / most : 0;
      int8_t high[GROUP], low[GROUP];
      i32x16 high_sum = {0}, low_sum = {0};
      for (int i = 0; i < GROUP; i += LANES) {
        i32x16 whole = round_to_int(load_f32(x + i) * inverse), upper = (whole + (1 << (LOW_BITS - 1))) >> LOW_BITS;
        i32x16 lower = whole - (upper << LOW_BITS);
        store_low_bytes(high + i, upper);
        store_low_bytes(low + i, lower);
        high_sum += upper;
        low_sum += lower;
      }
      for (int i = 0; i < QUADS; i++) {
        q->high[g][i][r] = load_dword(high + 4 * i);
        q->low[g][i][r] = load_dword(low + 4 * i);
      }
      q->high_start[g][r] = -SIGNED_BIAS * sum_lanes_i32(high_sum);
      q->low_start[g][r] = -SIGNED_BIAS * sum_lanes_i32(low_sum);
      q->factor[g][r] = most / WHOLE;
    }
}

/* sum[row][block] += bytes of the queries times those of the keys. What comes later is fetched in two passes. */
INLINE void score_group(i32x16 *sum, const int32_t (*x)[QUERIES], const uint8_t *keys, const uint8_t *later, long block,
                        const int rows, const int blocks, const int low) {
  KEEP_LOOP for (int i = 0; i < QUADS; i++) {
    u8x64 k[SPAN_BLOCKS];
    UNROLL for (int b = low; b < blocks; b += 2) prefetch_later(later + b * block + i * VECTOR_BYTES);
    UNROLL for (int b = 0; b < blocks; b++) k[b] = load_u8x64(keys + b * block + i * VECTOR_BYTES);
    UNROLL for (int r = 0; r < rows; r++)
      UNROLL for (int b = 0; b < blocks; b++) sum[r * blocks + b] = dot_signed(sum[r * blocks + b], k[b], x[i][r]);
  }
}

/* scores[row][position] for `blocks` times sixteen positions from block `from` on. */
INLINE void score_blocks(float scores[QUERIES][SPAN], const Queries *q, const char *keys, const char *next, long padded,
                         long from, const int rows, const int blocks) {
  long block = padded * LANES, groups = padded / GROUP;
  const uint8_t *key = (const uint8_t *)keys + from * block, *later = (const uint8_t *)next + from * block;
  const half *factors = (const half *)(keys + SPAN * padded) + from * groups * LANES;
  const half *later_factors = (const half *)(next + SPAN * padded) + from * groups * LANES;
  for (long g = 0; g < groups; g++, key += GROUP * LANES, later += GROUP * LANES, factors += LANES) {
    i32x16 sum[MOST_SUMS];
    UNROLL for (int b = 0; b < blocks; b++) prefetch_later(later_factors + (b * groups + g) * LANES);
    UNROLL for (int r = 0; r < rows; r++)
      UNROLL for (int b = 0; b < blocks; b++) sum[r * blocks + b] = all_i32(q->high_start[g][r]);
    score_group(sum, q->high[g], key, later, block, rows, blocks, 0);
    UNROLL for (int r = 0; r < rows; r++)
      UNROLL for (int b = 0; b < blocks; b++)
        sum[r * blocks + b] = (sum[r * blocks + b] << LOW_BITS) + q->low_start[g][r];
    score_group(sum, q->low[g], key, later, block, rows, blocks, 1);
    UNROLL for (int b = 0; b < blocks; b++) {
      f32x16 d = from_half(factors + b * groups * LANES);
      UNROLL for (int r = 0; r < rows; r++) {
        float *to = scores[r] + (from + b) * LANES;
        f32x16 before = g ? load_f32(to) : all_f32(0);
        store_f32(to, fma_f32(float_of_i32(sum[r * blocks + b]), d * q->factor[g][r], before));
      }
    }
  }
}

/* Weights of some rows times the factors of some groups, [row][group]: as (high * 2^LOW_BITS + low) * factor, neither of
 * them negative. */
typedef struct {
  int8_t high[MOST_SUMS / 2][SPAN], low[MOST_SUMS / 2][SPAN];
  float factor[MOST_SUMS / 2];
} Weights;

/* The largest is looked for among a row's own positions, whose weights alone are not zero: others' depend on the batch. */
INLINE void set_weights(Weights *w, const float weights[QUERIES][SPAN], const half *factors, long blocks, const int rows,
                        const int groups) {
  for (int g = 0; g < groups; g++) {
    float products[QUERIES][SPAN], inverse[QUERIES];
    f32x16 largest[QUERIES] = {{0}};
    for (long b = 0; b < blocks; b++) {
      f32x16 d = from_half(factors + g * SPAN + b * LANES);
      UNROLL for (int r = 0; r < rows; r++) {
        f32x16 product = load_f32(weights[r] + b * LANES) * d;
        store_f32(products[r] + b * LANES, product);
        largest[r] = max_f32(largest[r], product);
      }
    }
    UNROLL for (int r = 0; r < rows; r++) {
      float most = max_lanes(largest[r]);
      inverse[r] = most > LEAST ? WHOLE / most : 0;
      w->factor[r * groups + g] = most / WHOLE;
    }
    for (long b = 0; b < blocks; b++)
      UNROLL for (int r = 0; r < rows; r++) {
        i32x16 whole = round_to_int(load_f32(products[r] + b * LANES) * inverse[r]);
        store_low_bytes(w->high[r * groups + g] + b * LANES, whole >> LOW_BITS);
        store_low_bytes(w->low[r * groups + g] + b * LANES, whole & ((1 << LOW_BITS) - 1));
      }
  }
}

/* sum[row][group][half of it] += bytes of the weights times those of the values. What comes later is fetched in two
 * passes. */
INLINE void add_bytes(i32x16 *sums, const int8_t (*weights)[SPAN], const uint8_t *values, const char *next, long count,
                      const int rows, const int groups, const int low) {
  i32x16 sum[MOST_SUMS]; /* a copy, which the compiler keeps in registers */
  UNROLL for (int i = 0; i < rows * groups * 2; i++) sum[i] = sums[i];
  KEEP_LOOP for (long t = 0; t < count; t += 4) {
    UNROLL for (int g = 0; g < groups; g++) {
      const uint8_t *from = values + (g * SPAN + t) * GROUP;
      prefetch_later(next + (g * SPAN + t) * GROUP + low * VECTOR_BYTES);
      u8x64 v[2] = {load_u8x64(from), load_u8x64(from + VECTOR_BYTES)};
      UNROLL for (int r = 0; r < rows; r++) {
        int32_t x = load_dword(weights[r * groups + g] + t);
        UNROLL for (int i = 0; i < 2; i++) {
          i32x16 *to = sum + (r * groups + g) * 2 + i;
          *to = dot_by_unsigned(*to, v[i], x);
        }
      }
    }
  }
  UNROLL for (int i = 0; i < rows * groups * 2; i++) sums[i] = sum[i];
}

/* o[row][d] += sum of weights[row][t] * values[t][d] for some groups of d. */
INLINE void add_groups(float *o, const float weights[QUERIES][SPAN], const uint8_t *values,
                       const half *factors, const char *next, long count, const int rows, const int groups) {
  Weights w;
  i32x16 sum[MOST_SUMS] = {{0}};
  set_weights(&w, weights, factors, (count + LANES - 1) / LANES, rows, groups); /* zero behind `count` */
  add_bytes(sum, w.high, values, next, count, rows, groups, 0);
  UNROLL for (int i = 0; i < rows * groups * 2; i++) sum[i] <<= LOW_BITS;
  add_bytes(sum, w.low, values, next, count, rows, groups, 1);
  UNROLL for (int r = 0; r < rows; r++)
    UNROLL for (int i = 0; i < groups * 2; i++) {
      float *to = o + r * MOST_HEAD_SIZE + i * LANES;
      f32x16 factor = all_f32(w.factor[r * groups + i / 2]);
      store_f32(to, fma_f32(float_of_i32(sum[r * groups * 2 + i]), factor, load_f32(to)));
    }
}

/* The same for all of d, over the first `count` positions of a span. */
INLINE void add_values(float o[QUERIES][MOST_HEAD_SIZE], const float weights[QUERIES][SPAN], const char *values,
                       const char *next, long padded, long count, const int rows) {
  const int fit = POWER_OF_TWO_UP_TO(SUMS_AT_ONCE / (2 * rows));
  const int at_once = fit < MOST_GROUPS_AT_ONCE ? fit : MOST_GROUPS_AT_ONCE;
  const uint8_t *value = (const uint8_t *)values;
  const half *factors = (const half *)(values + SPAN * padded);
  long groups = padded / GROUP, g = 0;
  for (; g + at_once <= groups; g += at_once)
    add_groups(o[0] + g * GROUP, weights, value + g * SPAN * GROUP, factors + g * SPAN, next + g * SPAN * GROUP, count,
               rows, at_once);
  if (at_once > 1)
    for (; g < groups; g++)
      add_groups(o[0] + g * GROUP, weights, value + g * SPAN * GROUP, factors + g * SPAN, next + g * SPAN * GROUP, count,
                 rows, 1);
  for (long line = 0; line < groups * SPAN * (long)sizeof(half); line += VECTOR_BYTES)
    prefetch_later(next + SPAN * padded + line);
}
