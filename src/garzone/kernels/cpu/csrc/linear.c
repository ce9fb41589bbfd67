/* Products of a quantised matrix with one token's activations, or with many.
 *
 * Compiled once for each weight type, with -DQUANT="quants/q4_k.h" naming the description of the type. Weights stay
 * packed: for as many tokens as fill a tile they are unpacked in registers on their way to the dot products, and for
 * more once into the first-level cache, where all tiles use them. Sixteen rows go side by side through every
 * instruction, so nothing is ever summed across a register.
 */
#include <stdatomic.h>
#include <stddef.h>

#include "activation.h"
#include "finish.h"
#include "linear.h"
#include QUANT

enum {
  GROUPS = BLOCK_COLUMNS / GROUP,    /* of a block */
  SUBS = GROUP / SUB_COLUMNS,        /* scales of a group */
  SUB_QUADS = SUB_COLUMNS / QUAD,
  PANEL_GROUPS = 8,                  /* 256 columns of 16 rows unpack into 4 KB */
  TOKENS_PER_PASS = 256,             /* their sums take 16 KB */
  GROUP_BYTES = sizeof(Rows) / GROUPS,
  PREFETCH_BYTES = 6144,             /* ahead in the stream of weights; see docs/engine-log.md for the others tried */
  PARTS_PER_THREAD = 6,
};

INLINE i32x16 dot(i32x16 sum, u8x64 w, int32_t x) {
  return IS_SIGNED ? dot_signed(sum, w, x) : dot_unsigned(sum, w, x);
}

/* Sum of (q - ZERO) * x = sum of q * x, begun at -ZERO * (sum of x): exact, and free. Unsigned, since the sums of tokens
 * that are not there are anything. */
INLINE i32x16 start(int32_t sum_of_x) {
  return ZERO ? all_i32((int32_t)(-(uint32_t)ZERO * (uint32_t)sum_of_x)) : (i32x16){0};
}

INLINE int32_t sub_sum(const int32_t *half_sum, int stride, int sub) {
  return SUBS == 1 ? half_sum[0] + half_sum[stride] : half_sum[sub * stride];
}

/* The one place where products become floats, so that one token and many add up alike. */
INLINE f32x16 add_sub(f32x16 sum, i32x16 dots, f32x16 scale, f32x16 minimum, float scale_of_x, float sum_of_x) {
  sum = fma_f32(float_of_i32(dots), scale * scale_of_x, sum);
  return HAS_MINIMUM ? fma_f32(minimum, all_f32(sum_of_x), sum) : sum;
}

/* ---- one token ---- */

INLINE f32x16 add_group_times_vector(f32x16 sum, const Rows *rows, int group, const Activation *x) {
  UNROLL for (int sub = 0; sub < SUBS; sub++) {
    i32x16 even = start(sub_sum(x->half_sum[0], 1, sub)), odd = {0}; /* two chains hide the latency of the dot */
    UNROLL for (int i = sub * SUB_QUADS; i < (sub + 1) * SUB_QUADS; i += 2) {
      even = dot(even, quad(rows, group, i), load_dword(x->q[i][0]));
      odd = dot(odd, quad(rows, group, i + 1), load_dword(x->q[i + 1][0]));
    }
    sum = add_sub(sum, even + odd, scale(rows, group * SUBS + sub), minimum(rows, group * SUBS + sub), x->scale[0],
                  SUBS == 1 ? x->sum[0] : x->scale[0] * (float)x->half_sum[sub][0]);
  }
  return sum;
}

INLINE void prefetch_group(const Rows *rows, int group) {
  UNROLL for (int line = 0; line < GROUP_BYTES; line += VECTOR_BYTES)
    prefetch((const char *)rows + PREFETCH_BYTES + group * GROUP_BYTES + line);
}

static f32x16 rows_times_vector(const Rows *rows, const Activation *x, long blocks) {
  f32x16 sum = {0};
  for (long b = 0; b < blocks; b++, rows++, x += GROUPS) {
    /* Not unrolled: eight groups at once do not fit into the registers, and compilers try. */
    KEEP_LOOP for (int group = 0; group < GROUPS; group++) {
      prefetch_group(rows, group);
      sum = add_group_times_vector(sum, rows, group, x + group);
    }
  }
  return sum;
}

/* ---- several tokens ---- */

typedef struct {
  u8x64 q[PANEL_GROUPS][QUADS];
  f32x16 scale[PANEL_GROUPS][SUBS], minimum[PANEL_GROUPS][SUBS];
} Panel;

/* A group's weights for as many tokens as the compiler is told; from the panel if they are unpacked already. */
INLINE void add_group_times_tokens(f32x16 *sum, const Rows *rows, const Panel *panel, int group,
                                   const ActivationTile *x, const int tokens) {
  UNROLL for (int sub = 0; sub < SUBS; sub++) {
    int factors = group * SUBS + sub;
    f32x16 factor = panel ? panel->scale[group][sub] : scale(rows, factors);
    f32x16 least = panel ? panel->minimum[group][sub] : minimum(rows, factors);
    i32x16 dots[TOKENS_PER_TILE];
    UNROLL for (int t = 0; t < tokens; t++)
      dots[t] = start(sub_sum(&x->half_sum[0][t], TOKENS_PER_TILE, sub));
    UNROLL for (int i = sub * SUB_QUADS; i < (sub + 1) * SUB_QUADS; i++) {
      u8x64 w = panel ? panel->q[group][i] : quad(rows, group, i);
      UNROLL for (int t = 0; t < tokens; t++) dots[t] = dot(dots[t], w, load_dword(x->q[i][t]));
    }
    UNROLL for (int t = 0; t < tokens; t++) {
      float sum_of_x = SUBS == 1 ? x->sum[t] : x->scale[t] * (float)x->half_sum[sub][t];
      sum[t] = add_sub(sum[t], dots[t], factor, least, x->scale[t], sum_of_x);
    }
  }
}

/* ---- a tile's worth of tokens: weights are used as they come from memory ---- */

INLINE void rows_times_tokens(f32x16 *sums, const Rows *rows, const ActivationTile *x, long blocks, const int tokens) {
  f32x16 sum[TOKENS_PER_TILE] = {{0}};
  for (long b = 0; b < blocks; b++, rows++, x += GROUPS)
    KEEP_LOOP for (int group = 0; group < GROUPS; group++) {
      prefetch_group(rows, group);
      add_group_times_tokens(sum, rows, NULL, group, x + group, tokens);
    }
  UNROLL for (int t = 0; t < tokens; t++) sums[t] = sum[t];
}

/* A tile that is not full costs about what its tokens cost; those that are not there are computed and forgotten. */
static void rows_times_tile(const Product *p, const Rows *rows, long first_row) {
  f32x16 sums[TOKENS_PER_TILE];
  long blocks = p->columns / BLOCK_COLUMNS;
  if (p->tokens <= 2) rows_times_tokens(sums, rows, p->activation, blocks, 2);
  else if (p->tokens <= 4) rows_times_tokens(sums, rows, p->activation, blocks, 4);
  else rows_times_tokens(sums, rows, p->activation, blocks, TOKENS_PER_TILE);
  for (long t = 0; t < p->tokens; t++) finish_rows(p, t, first_row, sums[t]);
}

/* ---- many tokens: weights are unpacked once for all tiles ---- */

static void unpack(Panel *to, const Rows *rows, int groups) {
  for (int g = 0; g < groups; g++, rows += GROUPS == 1) {
    int group = GROUPS == 1 ? 0 : g;
    prefetch_group(rows, group); /* they come while the tiles are multiplied */
    UNROLL for (int i = 0; i < QUADS; i++) to->q[g][i] = quad(rows, group, i);
    UNROLL for (int sub = 0; sub < SUBS; sub++) {
      to->scale[g][sub] = scale(rows, group * SUBS + sub);
      if (HAS_MINIMUM) to->minimum[g][sub] = minimum(rows, group * SUBS + sub);
    }
  }
}

INLINE void panel_times_tokens(f32x16 *sums, const Panel *panel, const ActivationTile *x, int groups,
                               const int tokens) {
  f32x16 sum[TOKENS_PER_TILE];
  UNROLL for (int t = 0; t < tokens; t++) sum[t] = sums[t];
  for (int g = 0; g < groups; g++) add_group_times_tokens(sum, NULL, panel, g, x + g, tokens);
  UNROLL for (int t = 0; t < tokens; t++) sums[t] = sum[t];
}

static void panel_times_tile(f32x16 *sums, const Panel *panel, const ActivationTile *x, int groups, long tokens) {
  if (tokens <= 2) panel_times_tokens(sums, panel, x, groups, 2);
  else if (tokens <= 4) panel_times_tokens(sums, panel, x, groups, 4);
  else panel_times_tokens(sums, panel, x, groups, TOKENS_PER_TILE);
}

/* Sixteen rows times up to TOKENS_PER_PASS tokens, beginning with a full tile. */
static void rows_times_tiles(const Product *p, const Rows *rows, long first_row, long first_token, long tokens) {
  f32x16 sums[TOKENS_PER_PASS];
  Panel panel;
  long groups = p->columns / GROUP, tiles = (tokens + TOKENS_PER_TILE - 1) / TOKENS_PER_TILE;
  const ActivationTile *x = (const ActivationTile *)p->activation + first_token / TOKENS_PER_TILE * groups;
  memset(sums, 0, sizeof(f32x16) * tiles * TOKENS_PER_TILE);
  for (long g = 0; g < groups; g += PANEL_GROUPS) {
    int width = (int)(groups - g < PANEL_GROUPS ? groups - g : PANEL_GROUPS);
    unpack(&panel, rows + g / GROUPS, width);
    for (long tile = 0; tile < tiles; tile++)
      panel_times_tile(sums + tile * TOKENS_PER_TILE, &panel, x + tile * groups + g, width,
                       tokens - tile * TOKENS_PER_TILE);
  }
  for (long t = 0; t < tokens; t++) finish_rows(p, first_token + t, first_row, sums[t]);
}

/* ---- what is exported ---- */

long packed_bytes(long rows, long columns) { return row_groups(rows) * (columns / BLOCK_COLUMNS) * (long)sizeof(Rows); }

/* The row groups [first, last) of a product, on the calling thread. */
void multiply_groups(const Product *p, long first, long last) {
  long blocks = p->columns / BLOCK_COLUMNS;
  for (long g = first; g < last; g++) {
    const Rows *rows = (const Rows *)p->weights + g * blocks;
    if (p->tokens == 1) finish_rows(p, 0, g * LANES, rows_times_vector(rows, p->activation, blocks));
    else if (p->tokens <= TOKENS_PER_TILE) rows_times_tile(p, rows, g * LANES);
    else
      for (long t = 0; t < p->tokens; t += TOKENS_PER_PASS)
        rows_times_tiles(p, rows, g * LANES, t, p->tokens - t < TOKENS_PER_PASS ? p->tokens - t : TOKENS_PER_PASS);
  }
}

typedef struct {
  Rows *to;
  const Native *const *rows;
  long num_rows, blocks;
  atomic_long damaged;
  unsigned parts;
} PackTask;

static int all_finite(f32x16 v) { return sum_lanes(v - v) == 0; } /* infinity less itself is no number */

static int is_damaged(const Rows *rows) {
  for (int sub = 0; sub < BLOCK_COLUMNS / SUB_COLUMNS; sub++)
    if (!all_finite(scale(rows, sub)) || !all_finite(minimum(rows, sub))) return 1;
  return 0;
}

static void pack_part(void *arg, unsigned part) {
  PackTask *task = arg;
  long groups = row_groups(task->num_rows), last = pool_first(groups, part + 1, task->parts);
  for (long g = pool_first(groups, part, task->parts); g < last; g++) {
    Rows *to = task->to + g * task->blocks;
    memset(to, 0, sizeof(Rows) * task->blocks);
    for (int row = 0; row < LANES && g * LANES + row < task->num_rows; row++) {
      const Native *from = task->rows[g * LANES + row];
      for (long b = 0; b < task->blocks; b++) put_row(to + b, row, from + b);
    }
    for (long b = 0; b < task->blocks; b++) task->damaged += is_damaged(to + b);
  }
}

/* `rows` points to each row as it lies in the file, so a matrix may be put together from several, in any order.
 * Returns how many pieces hold a weight that is not finite. */
long pack(Pool *pool, void *to, const void *const *rows, long num_rows, long columns) {
  PackTask task = {to, (const Native *const *)rows, num_rows, columns / BLOCK_COLUMNS, 0,
                   pool_parts(pool, row_groups(num_rows), PARTS_PER_THREAD)};
  pool->run(pool, pack_part, &task, task.parts);
  return task.damaged;
}

void unpack_row(float *to, const void *packed, long row, long columns) {
  const Rows *rows = (const Rows *)packed + row / LANES * (columns / BLOCK_COLUMNS);
  int lane = (int)(row % LANES);
  for (long g = 0; g < columns / GROUP; g++, to += GROUP) {
    const Rows *block = rows + g / GROUPS;
    int group = (int)(g % GROUPS);
    for (int i = 0; i < QUADS; i++) {
      int sub = group * SUBS + i / SUB_QUADS;
      u8x64 q = quad(block, group, i);
      float d = scale(block, sub)[lane], m = HAS_MINIMUM ? minimum(block, sub)[lane] : 0;
      for (int k = 0; k < QUAD; k++) {
        uint8_t value = q[QUAD * lane + k];
        to[QUAD * i + k] = d * (float)((IS_SIGNED ? (int8_t)(value - SIGNED_BIAS) : value - ZERO)) + m;
      }
    }
  }
}
