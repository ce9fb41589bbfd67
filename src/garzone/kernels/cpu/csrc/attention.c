/* Attention, softmax(q . k) . v, over the rows of a KV cache, for decoding and for chunks of a prompt alike.
 *
 * Compiled once for each type of rows: -DROWS="rows/<type>.h" says how they lie in memory, and how they are multiplied.
 *
 * The query heads of one or more tokens that read the same keys and values form a tile: up to QUERIES rows that share
 * every load. Positions are taken SPAN at a time with a running maximum and sum (Dao et al., arXiv 2205.14135; Milakov
 * and Gimelshein, arXiv 1805.02867), within segments of a fixed length; the segments' partial results are then weighed
 * together in their order. Where there are too few tiles to keep all threads busy, as when one token is decoded, each
 * segment is a task of its own. Either way a token's numbers are the same to the last bit.
 */
#include "attention.h"

#include "lanes_math.h"

#define POWER_OF_TWO_UP_TO(most) ((most) >= 8 ? 8 : (most) >= 4 ? 4 : (most) >= 2 ? 2 : 1)

enum {
  QUERIES = TOKENS_PER_TILE,
  SPAN_BLOCKS = SPAN / LANES,
  MOST_VECTORS = 4,        /* of a value taken at once: heads of 64 have no more */
  MOST_SUMS = 24,
  TASKS_PER_THREAD = 4,
  MOST_SEGMENTS = 32,      /* of a slot */
  PARTS_PER_THREAD = 8,    /* later tokens see more positions: small parts even it out */
};
static const float HIDDEN = -1e30f; /* the score of a position that may not be seen: its weight underflows to zero */

#include ROWS

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
  long segments, tasks;
  unsigned parts;
} Work;

long head_span_bytes(long head_size) { return 2 * part_bytes(head_size); }

/* Where the keys of a head in the span of a position lie, and its values behind them. */
INLINE char *head_rows(const KVCache *cache, long slot, long kv_head, long position) {
  return cache->rows + slot * cache->slot_bytes + position / SPAN * cache->span_bytes +
         kv_head * head_span_bytes(cache->head_size);
}

static long tile_positions(const Attention *a, const Tile *tile) {
  long group = a->heads / a->cache.kv_heads;
  return a->positions[tile->first_token + (tile->first_row + tile->rows - 1) / group] + 1;
}

static long first_seen(const Attention *a, long position) {
  return a->window && position >= a->window ? position + 1 - a->window : 0;
}

/* The first span that a tile sees anything of: later tokens see no earlier positions. */
static long tile_first_position(const Attention *a, const Tile *tile) {
  long group = a->heads / a->cache.kv_heads;
  return first_seen(a, a->positions[tile->first_token + tile->first_row / group]) / SPAN * SPAN;
}

/* As many blocks as there are, beginning with as many at once as the registers hold. The compiler must know how many. */
INLINE long score_some(float scores[QUERIES][SPAN], const Queries *q, const char *keys, const char *next, long padded,
                       long from, long blocks, const int rows, const int at_once) {
  if (rows * at_once <= SUMS_AT_ONCE || at_once == 1)
    for (; from + at_once <= blocks; from += at_once)
      score_blocks(scores, q, keys, next, padded, from, rows, at_once);
  return from;
}

INLINE void score_span(float scores[QUERIES][SPAN], const Queries *q, const char *keys, const char *next, long padded,
                       long blocks, const int rows) {
  long done = score_some(scores, q, keys, next, padded, 0, blocks, rows, 8);
  done = score_some(scores, q, keys, next, padded, done, blocks, rows, 4);
  done = score_some(scores, q, keys, next, padded, done, blocks, rows, 2);
  score_some(scores, q, keys, next, padded, done, blocks, rows, 1);
}

/* Which lanes of a block are positions in [first, end), both counted from the beginning of the span. */
INLINE i32x16 seen_lanes(long block, long first, long end) {
  i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  lane += (int32_t)(block * LANES);
  return (lane < (int32_t)end) & (lane >= (int32_t)first);
}

/* Turns one row's scores into weights relative to its running maximum, and rescales what it has summed so far. */
INLINE void update_row_of(Partial *p, int r, float scores[SPAN], long blocks, long first, long end,
                          long padded, const int sees_all) {
  f32x16 largest = all_f32(p->largest[r]);
  for (long b = 0; b < blocks; b++) {
    f32x16 s = load_f32(scores + b * LANES);
    if (!sees_all) {
      s = select_f32(seen_lanes(b, first, end), s, all_f32(HIDDEN));
      store_f32(scores + b * LANES, s);
    }
    largest = max_f32(largest, s);
  }
  float new_largest = max_lanes(largest);
  f32x16 sum = {0};
  for (long b = 0; b < blocks; b++) {
    f32x16 weights = exp_f32(load_f32(scores + b * LANES) - new_largest);
    if (!sees_all)
      weights = select_f32(seen_lanes(b, first, end), weights, all_f32(0)); /* exp_f32 stops short of zero */
    store_f32(scores + b * LANES, weights);
    sum += weights;
  }
  float shrink = exp_f32(all_f32(p->largest[r] - new_largest))[0];
  p->weight[r] = p->weight[r] * shrink + sum_lanes(sum); /* two roundings: nothing here is contracted */
  p->largest[r] = new_largest;
  if (shrink != 1)
    for (long d = 0; d < padded; d += LANES) store_f32(p->o[r] + d, load_f32(p->o[r] + d) * shrink);
}

static void update_row(Partial *p, int r, float scores[SPAN], long blocks, long first, long end, long padded) {
  if (first <= 0 && end >= blocks * LANES) update_row_of(p, r, scores, blocks, first, end, padded, 1);
  else update_row_of(p, r, scores, blocks, first, end, padded, 0);
}

/* All of a tile's rows over positions [begin, end), begin being a multiple of SPAN. `rows` is a constant to the
 * compiler, which keeps that many sums in registers. */
INLINE void attend_rows(const Attention *a, const Tile *tile, long kv_head, long begin, long end, Partial *p,
                        const int rows) {
  const KVCache *cache = &a->cache;
  long head_size = cache->head_size, padded = padded_head_size(head_size), group = a->heads / cache->kv_heads;
  float scores[QUERIES][SPAN];
  const float *from[QUERIES];
  long first[QUERIES], seen[QUERIES];
  Queries q;
  for (int r = 0; r < rows; r++) {
    long row = tile->first_row + r, token = tile->first_token + row / group, head = kv_head * group + row % group;
    from[r] = a->queries + token * a->query_stride + head * head_size;
    first[r] = first_seen(a, a->positions[token]);
    seen[r] = a->positions[token] + 1;
    p->largest[r] = HIDDEN;
    p->weight[r] = 0;
    memset(p->o[r], 0, sizeof(float) * padded);
  }
  set_queries(&q, from, head_size, rows);
  for (long at = begin; at < end; at += SPAN) {
    long count = end - at < SPAN ? end - at : SPAN, blocks = (count + LANES - 1) / LANES;
    const char *keys = head_rows(cache, a->slots[tile->first_token], kv_head, at), *values = keys + part_bytes(head_size);
    score_span(scores, &q, keys, values, padded, blocks, rows);
    for (int r = 0; r < rows; r++) update_row(p, r, scores[r], blocks, first[r] - at, seen[r] - at, padded);
    add_values(p->o, (const float (*)[SPAN])scores, values, keys + cache->span_bytes, padded, count, rows);
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

/* Weighs another segment's results into those of the segments before it, if a row has seen any of them. */
static void merge(Partial *into, const Partial *from, long rows, long padded) {
  for (long r = 0; r < rows; r++) {
    if (from->weight[r] == 0) continue; /* the row lies before this segment, or its window behind it */
    if (into->weight[r] == 0) {
      memcpy(into->o[r], from->o[r], sizeof(float) * padded);
      into->weight[r] = from->weight[r];
      into->largest[r] = from->largest[r];
      continue;
    }
    float largest = into->largest[r] > from->largest[r] ? into->largest[r] : from->largest[r];
    f32x16 old = exp_f32(all_f32(into->largest[r] - largest)), new = exp_f32(all_f32(from->largest[r] - largest));
    for (long d = 0; d < padded; d += LANES)
      store_f32(into->o[r] + d, fma_f32(load_f32(from->o[r] + d), new, load_f32(into->o[r] + d) * old));
    into->weight[r] = into->weight[r] * old[0] + from->weight[r] * new[0];
    into->largest[r] = largest;
  }
}

static void write_out(const Attention *a, const Tile *tile, long kv_head, const Partial *p) {
  long head_size = a->cache.head_size, group = a->heads / a->cache.kv_heads;
  for (long r = 0; r < tile->rows; r++) {
    long row = tile->first_row + r, token = tile->first_token + row / group, head = kv_head * group + row % group;
    float *out = a->out + (token * a->heads + head) * head_size, weight = p->weight[r];
    long d = 0;
    for (; d + LANES <= head_size; d += LANES) store_f32(out + d, load_f32(p->o[r] + d) / weight);
    for (; d < head_size; d++) out[d] = p->o[r][d] / weight;
  }
}

/* Positions of a segment: the same for every token of a cache, whatever its position, lest sums depend on the batch. */
static long segment_positions(const KVCache *cache) {
  long spans = (cache->positions + SPAN - 1) / SPAN;
  return (spans + MOST_SEGMENTS - 1) / MOST_SEGMENTS * SPAN;
}

static long count_segments(const KVCache *cache, long positions) {
  long segment = segment_positions(cache);
  return (positions + segment - 1) / segment;
}

static void attend_segment(const Attention *a, const Tile *tile, long kv_head, long index, Partial *p) {
  long segment = segment_positions(&a->cache), begin = index * segment, end = begin + segment;
  long positions = tile_positions(a, tile), first = tile_first_position(a, tile);
  attend_tile(a, tile, kv_head, begin > first ? begin : first, end < positions ? end : positions, p);
}

/* Whole tiles, segment after segment; those of one key-value head follow one another, while it is in the cache. */
static void attend_part(void *arg, unsigned part) {
  const Work *work = arg;
  const Attention *a = work->a;
  long last = pool_first(work->tasks, part + 1, work->parts), num_tiles = work->tasks / a->cache.kv_heads;
  for (long task = pool_first(work->tasks, part, work->parts); task < last; task++) {
    const Tile *tile = work->tiles + task % num_tiles;
    long kv_head = task / num_tiles, segments = count_segments(&a->cache, tile_positions(a, tile));
    Partial all, one;
    attend_segment(a, tile, kv_head, 0, &all);
    for (long s = 1; s < segments; s++) {
      attend_segment(a, tile, kv_head, s, &one);
      merge(&all, &one, tile->rows, padded_head_size(a->cache.head_size));
    }
    write_out(a, tile, kv_head, &all);
  }
}

/* Single segments, whose results are kept. */
static void attend_segments_part(void *arg, unsigned part) {
  const Work *work = arg;
  const Attention *a = work->a;
  long last = pool_first(work->tasks, part + 1, work->parts);
  for (long task = pool_first(work->tasks, part, work->parts); task < last; task++) {
    long segment = task % work->segments, tile_head = task / work->segments;
    const Tile *tile = work->tiles + tile_head / a->cache.kv_heads;
    if (segment < count_segments(&a->cache, tile_positions(a, tile)))
      attend_segment(a, tile, tile_head % a->cache.kv_heads, segment, work->partials + task);
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

/* Tiles first, then the partial results of segments, which are kept only where there are few tiles. */
long attention_scratch_bytes(long tokens, long heads, long kv_heads, long threads, long positions) {
  KVCache cache = {.positions = positions};
  long partials = threads * TASKS_PER_THREAD * count_segments(&cache, positions);
  return most_tiles(tokens, heads / kv_heads) * (long)sizeof(Tile) + partials * (long)sizeof(Partial);
}

void attend(Pool *pool, const Attention *a) {
  long group = a->heads / a->cache.kv_heads, longest = 0, kv_heads = a->cache.kv_heads;
  for (long t = 0; t < a->tokens; t++)
    if (a->positions[t] >= longest) longest = a->positions[t] + 1;
  Tile *tiles = (Tile *)a->scratch;
  Work work = {.a = a, .tiles = tiles, .partials = (Partial *)(tiles + most_tiles(a->tokens, group))};
  long tile_heads = make_tiles(a, tiles) * kv_heads;
  work.segments = count_segments(&a->cache, longest);
  if (work.segments == 1 || pool->threads == 1 || tile_heads >= (long)pool->threads * TASKS_PER_THREAD) {
    work.tasks = tile_heads;
    work.parts = pool_parts(pool, work.tasks, PARTS_PER_THREAD);
    pool->run(pool, attend_part, &work, work.parts);
    return;
  }
  work.tasks = tile_heads * work.segments;
  work.parts = (unsigned)work.tasks;
  pool->run(pool, attend_segments_part, &work, work.parts);
  for (long i = 0; i < tile_heads; i++) {
    const Tile *tile = tiles + i / kv_heads;
    Partial *partials = work.partials + i * work.segments;
    for (long s = 1; s < count_segments(&a->cache, tile_positions(a, tile)); s++)
      merge(partials, partials + s, tile->rows, padded_head_size(a->cache.head_size));
    write_out(a, tile, i % kv_heads, partials);
  }
}

/* ---- rows, one by one ---- */

void store_kv(const KVCache *cache, long slot, long kv_head, long position, const float *key, const float *value) {
  long head_size = cache->head_size;
  char *keys = head_rows(cache, slot, kv_head, position), row[MOST_ROW_BYTES];
  convert_row(row, key, head_size);
  put_key(keys, position % SPAN, row, head_size);
  convert_row(row, value, head_size);
  put_value(keys + part_bytes(head_size), position % SPAN, row, head_size);
}

void read_rows(const KVCache *cache, long slot, long start, long count, char *to) {
  long head_size = cache->head_size, heads = cache->kv_heads, bytes = row_bytes(head_size);
  for (long position = start; position < start + count; position++, to += 2 * heads * bytes)
    for (long h = 0; h < heads; h++) {
      char *keys = head_rows(cache, slot, h, position);
      get_key(to + h * bytes, keys, position % SPAN, head_size);
      get_value(to + (heads + h) * bytes, keys + part_bytes(head_size), position % SPAN, head_size);
    }
}

void write_rows(const KVCache *cache, long slot, long start, long count, const char *from) {
  long head_size = cache->head_size, heads = cache->kv_heads, bytes = row_bytes(head_size);
  for (long position = start; position < start + count; position++, from += 2 * heads * bytes)
    for (long h = 0; h < heads; h++) {
      char *keys = head_rows(cache, slot, h, position);
      put_key(keys, position % SPAN, from + h * bytes, head_size);
      put_value(keys + part_bytes(head_size), position % SPAN, from + (heads + h) * bytes, head_size);
    }
}

/* Whole spans: what lies behind the rows is stale in both slots anyway. */
void copy_rows(const KVCache *cache, long from_slot, long to_slot, long count) {
  for (long at = 0; at < count; at += SPAN)
    memcpy(head_rows(cache, to_slot, 0, at), head_rows(cache, from_slot, 0, at),
           (size_t)(cache->kv_heads * head_span_bytes(cache->head_size)));
}
