/* Attention, softmax(q . k) . v, over half-precision keys and values, for decoding and for chunks of a prompt alike.
 *
 * The query heads of one or more tokens that read the same keys and values form a tile: up to QUERIES rows that share
 * every load. Positions are taken SPAN at a time with a running maximum and sum (Dao et al., arXiv 2205.14135; Milakov
 * and Gimelshein, arXiv 1805.02867). Where there are too few tiles to keep all threads busy, as when one token is
 * decoded, a tile's positions are split, and the splits' partial results are weighed together at the end.
 */
#include "attention.h"

#include "lanes_math.h"

enum {
  QUERIES = TOKENS_PER_TILE,
  SPAN = 128,              /* positions between two updates of the running maximum */
  TASKS_PER_THREAD = 4,
  MOST_SPLITS = 64,
  PARTS_PER_THREAD = 8,    /* later tokens see more positions: small parts even it out */
};
static const float HIDDEN = -1e30f; /* the score of a position that may not be seen: its weight underflows to zero */

/* Rows `first_row` and on of the queries of tokens `first_token` and on, which all use one slot. A row is one token's
 * query head within the group that shares a key-value head. */
typedef struct {
  long first_token, first_row, rows;
} Tile;

/* What a tile has seen of some of its positions: o holds unnormalised sums. */
typedef struct {
  float largest[QUERIES], weight[QUERIES];
  float o[QUERIES][MOST_HEAD_SIZE];
} Partial;

typedef struct {
  const Attention *a;
  const Tile *tiles;
  Partial *partials;
  long num_tiles, splits, tasks;
  unsigned parts;
} Work;

static long tile_positions(const Attention *a, const Tile *tile) {
  long group = a->heads / a->cache.kv_heads;
  return a->positions[tile->first_token + (tile->first_row + tile->rows - 1) / group] + 1;
}

/* scores[row][position] for SPAN positions, sixteen at a time; q is [head_size][QUERIES]. */
INLINE void score_span(float scores[QUERIES][SPAN], const float (*q)[QUERIES], const half *keys, long head_size,
                       long blocks, const int rows) {
  long padded = padded_head_size(head_size);
  for (long b = 0; b < blocks; b++, keys += padded * LANES) {
    f32x16 even[QUERIES] = {{0}}, odd[QUERIES] = {{0}}; /* two chains hide the latency when there are few rows */
    for (long d = 0; d < padded; d += 2) {
      prefetch(keys + d * LANES + padded * LANES);
      f32x16 k0 = from_half(keys + d * LANES), k1 = from_half(keys + (d + 1) * LANES);
      UNROLL for (int r = 0; r < rows; r++) {
        even[r] += k0 * q[d][r];
        odd[r] += k1 * q[d + 1][r];
      }
    }
    UNROLL for (int r = 0; r < rows; r++) store_f32(scores[r] + b * LANES, even[r] + odd[r]);
  }
}

/* o[row] += sum of weights[row][t] * values[t] */
INLINE void add_values(float o[QUERIES][MOST_HEAD_SIZE], float weights[QUERIES][SPAN], const half *values,
                       long head_size, long count, const int rows) {
  long padded = padded_head_size(head_size);
  for (long d = 0; d < padded; d += LANES) {
    f32x16 even[QUERIES], odd[QUERIES] = {{0}};
    UNROLL for (int r = 0; r < rows; r++) even[r] = load_f32(o[r] + d);
    long t = 0;
    for (; t + 2 <= count; t += 2) {
      f32x16 v0 = from_half(values + t * padded + d), v1 = from_half(values + (t + 1) * padded + d);
      UNROLL for (int r = 0; r < rows; r++) {
        even[r] += v0 * weights[r][t];
        odd[r] += v1 * weights[r][t + 1];
      }
    }
    if (t < count) {
      f32x16 v = from_half(values + t * padded + d);
      UNROLL for (int r = 0; r < rows; r++) even[r] += v * weights[r][t];
    }
    UNROLL for (int r = 0; r < rows; r++) store_f32(o[r] + d, even[r] + odd[r]);
  }
}

/* Turns one row's scores into weights relative to its running maximum, and rescales what it has summed so far. */
static void update_row(Partial *p, int r, float scores[SPAN], long blocks, long visible, long padded) {
  i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  f32x16 largest = all_f32(p->largest[r]);
  for (long b = 0; b < blocks; b++) {
    i32x16 seen = lane + (int32_t)(b * LANES) < (int32_t)visible;
    f32x16 s = select_f32(seen, load_f32(scores + b * LANES), all_f32(HIDDEN));
    store_f32(scores + b * LANES, s);
    largest = max_f32(largest, s);
  }
  float new_largest = max_lanes(largest);
  f32x16 sum = {0};
  for (long b = 0; b < blocks; b++) {
    f32x16 weights = exp_f32(load_f32(scores + b * LANES) - new_largest);
    store_f32(scores + b * LANES, weights);
    sum += weights;
  }
  float shrink = exp_f32(all_f32(p->largest[r] - new_largest))[0];
  p->weight[r] = p->weight[r] * shrink + sum_lanes(sum);
  p->largest[r] = new_largest;
  if (shrink != 1)
    for (long d = 0; d < padded; d += LANES) store_f32(p->o[r] + d, load_f32(p->o[r] + d) * shrink);
}

/* All of a tile's rows over positions [begin, end), begin being a multiple of SPAN. `rows` is a constant to the
 * compiler, which keeps that many sums in registers. */
INLINE void attend_rows(const Attention *a, const Tile *tile, long kv_head, long begin, long end, Partial *p,
                        const int rows) {
  const KVCache *cache = &a->cache;
  long head_size = cache->head_size, padded = padded_head_size(head_size), group = a->heads / cache->kv_heads;
  float q[MOST_HEAD_SIZE][QUERIES], scores[QUERIES][SPAN];
  long seen[QUERIES];
  for (int r = 0; r < rows; r++) {
    long row = tile->first_row + r, token = tile->first_token + row / group, head = kv_head * group + row % group;
    const float *from = a->queries + token * a->query_stride + head * head_size;
    for (long d = 0; d < padded; d++) q[d][r] = d < head_size ? from[d] : 0;
    seen[r] = a->positions[token] + 1;
    p->largest[r] = HIDDEN;
    p->weight[r] = 0;
    memset(p->o[r], 0, sizeof(float) * padded);
  }
  long slot = a->slots[tile->first_token] * cache->kv_heads + kv_head;
  const half *keys = cache->keys + slot * cache->positions * padded;
  const half *values = cache->values + slot * cache->positions * padded;
  for (long at = begin; at < end; at += SPAN) {
    long count = end - at < SPAN ? end - at : SPAN, blocks = (count + LANES - 1) / LANES;
    score_span(scores, (const float (*)[QUERIES])q, keys + at * padded, head_size, blocks, rows);
    for (int r = 0; r < rows; r++) update_row(p, r, scores[r], blocks, seen[r] - at, padded);
    add_values(p->o, scores, values + at * padded, head_size, count, rows);
  }
}

static void attend_tile(const Attention *a, const Tile *tile, long kv_head, long begin, long end, Partial *p) {
  switch (tile->rows) {
  case 1: attend_rows(a, tile, kv_head, begin, end, p, 1); break;
  case 2: attend_rows(a, tile, kv_head, begin, end, p, 2); break;
  case 3: attend_rows(a, tile, kv_head, begin, end, p, 3); break;
  case 4: attend_rows(a, tile, kv_head, begin, end, p, 4); break;
#if defined(GARZONE_AVX512)
  case 5: attend_rows(a, tile, kv_head, begin, end, p, 5); break;
  case 6: attend_rows(a, tile, kv_head, begin, end, p, 6); break;
  case 7: attend_rows(a, tile, kv_head, begin, end, p, 7); break;
#endif
  default: attend_rows(a, tile, kv_head, begin, end, p, QUERIES); break;
  }
}

/* The splits of one tile weighed together, normalised and written out. */
static void combine(const Attention *a, const Tile *tile, long kv_head, const Partial *partials, long splits) {
  long head_size = a->cache.head_size, group = a->heads / a->cache.kv_heads;
  for (long r = 0; r < tile->rows; r++) {
    long row = tile->first_row + r, token = tile->first_token + row / group, head = kv_head * group + row % group;
    float *out = a->out + (token * a->heads + head) * head_size;
    float largest = HIDDEN, weight = 0, factors[MOST_SPLITS];
    for (long s = 0; s < splits; s++)
      if (partials[s].largest[r] > largest) largest = partials[s].largest[r];
    for (long s = 0; s < splits; s++) {
      factors[s] = splits == 1 ? 1 : exp_f32(all_f32(partials[s].largest[r] - largest))[0];
      weight += factors[s] * partials[s].weight[r];
    }
    for (long d = 0; d < head_size; d++) {
      float sum = 0;
      for (long s = 0; s < splits; s++) sum += factors[s] * partials[s].o[r][d];
      out[d] = sum / weight;
    }
  }
}

static long split_begin(long positions, long split, long splits) {
  long spans = (positions + SPAN - 1) / SPAN;
  return spans * split / splits * SPAN;
}

static void attend_part(void *arg, unsigned part) {
  const Work *work = arg;
  const Attention *a = work->a;
  long last = pool_first(work->tasks, part + 1, work->parts);
  for (long task = pool_first(work->tasks, part, work->parts); task < last; task++) {
    long split = task % work->splits, tile_head = task / work->splits;
    const Tile *tile = work->tiles + tile_head / a->cache.kv_heads;
    long kv_head = tile_head % a->cache.kv_heads, positions = tile_positions(a, tile);
    long begin = split_begin(positions, split, work->splits), end = split_begin(positions, split + 1, work->splits);
    if (end > positions) end = positions;
    if (work->splits > 1) {
      attend_tile(a, tile, kv_head, begin, end, work->partials + task);
    } else {
      Partial partial;
      attend_tile(a, tile, kv_head, begin, end, &partial);
      combine(a, tile, kv_head, &partial, 1);
    }
  }
}

/* Cuts the tokens into runs of one slot, and the runs' rows into tiles. */
static long make_tiles(const Attention *a, Tile *tiles) {
  long group = a->heads / a->cache.kv_heads, count = 0;
  for (long token = 0, next; token < a->tokens; token = next) {
    for (next = token + 1; next < a->tokens && a->slots[next] == a->slots[token]; next++) {}
    long rows = (next - token) * group;
    for (long row = 0; row < rows; row += QUERIES)
      tiles[count++] = (Tile){token, row, rows - row < QUERIES ? rows - row : QUERIES};
  }
  return count;
}

static long most_tiles(long tokens, long group) { return tokens * ((group + QUERIES - 1) / QUERIES); }

static long choose_splits(long tile_heads, long positions, long threads) {
  long wanted = threads > 1 ? (threads * TASKS_PER_THREAD + tile_heads - 1) / tile_heads : 1;
  long spans = (positions + SPAN - 1) / SPAN;
  long splits = wanted < spans ? wanted : spans;
  return splits < MOST_SPLITS ? splits : MOST_SPLITS;
}

/* Tiles first, then partial results: there are splits only when there are fewer tasks than TASKS_PER_THREAD a thread,
 * and rounding up makes them at most twice as many. */
long attention_scratch_bytes(long tokens, long heads, long kv_heads, long threads) {
  long partials = threads * TASKS_PER_THREAD * 2;
  return most_tiles(tokens, heads / kv_heads) * (long)sizeof(Tile) + partials * (long)sizeof(Partial);
}

void attend(Pool *pool, const Attention *a) {
  long group = a->heads / a->cache.kv_heads, longest = 0;
  for (long t = 0; t < a->tokens; t++)
    if (a->positions[t] >= longest) longest = a->positions[t] + 1;
  Tile *tiles = (Tile *)a->scratch;
  Work work = {a, tiles, (Partial *)(tiles + most_tiles(a->tokens, group)), make_tiles(a, tiles), 1, 0, 0};
  work.splits = choose_splits(work.num_tiles * a->cache.kv_heads, longest, pool->threads);
  work.tasks = work.num_tiles * a->cache.kv_heads * work.splits;
  work.parts = work.splits > 1 ? (unsigned)work.tasks : pool_parts(pool, work.tasks, PARTS_PER_THREAD);
  pool->run(pool, attend_part, &work, work.parts);
  if (work.splits > 1)
    for (long i = 0; i < work.num_tiles * a->cache.kv_heads; i++)
      combine(a, tiles + i / a->cache.kv_heads, i % a->cache.kv_heads, work.partials + i * work.splits, work.splits);
}

void store_kv(const KVCache *cache, long slot, long kv_head, long position, const float *key, const float *value) {
  long padded = padded_head_size(cache->head_size), head = (slot * cache->kv_heads + kv_head) * cache->positions;
  half *keys = cache->keys + (head + position / LANES * LANES) * padded + position % LANES;
  half *values = cache->values + (head + position) * padded;
  for (long d = 0; d < cache->head_size; d += LANES) {
    float k[LANES] = {0}, v[LANES] = {0};
    half rounded[LANES];
    long rest = cache->head_size - d < LANES ? cache->head_size - d : LANES;
    memcpy(k, key + d, sizeof(float) * rest);
    memcpy(v, value + d, sizeof(float) * rest);
    to_half(rounded, load_f32(k));
    for (int i = 0; i < LANES; i++) keys[(d + i) * LANES] = rounded[i];
    to_half(values + d, load_f32(v));
  }
}
