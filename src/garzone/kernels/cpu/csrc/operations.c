/* The operations that a decoder is made of: embedding, matrix products with what surrounds them, attention.
 *
 * Each is one call; within it, the heavy loops run on the pool, and the little work between them is done by the calling
 * thread for one token and by all threads for many. Every kernel call of a model's step lands here.
 */
#include "operations.h"

#include "activation.h"
#include "lanes_math.h"
#include "products.h"

enum { PARTS_PER_THREAD = 4 };

/* ---- loops over tokens ---- */

typedef struct {
  void (*work)(const void *arg, long token);
  const void *arg;
  long tokens;
  unsigned parts;
} EachToken;

static void each_token_part(void *arg, unsigned part) {
  const EachToken *each = arg;
  long last = pool_first(each->tokens, part + 1, each->parts);
  for (long t = pool_first(each->tokens, part, each->parts); t < last; t++) each->work(each->arg, t);
}

static void for_each_token(Pool *pool, long tokens, void (*work)(const void *, long), const void *arg) {
  EachToken each = {work, arg, tokens, pool_parts(pool, tokens, PARTS_PER_THREAD)};
  pool->run(pool, each_token_part, &each, each.parts);
}

/* ---- embedding ---- */

typedef struct {
  const Embed *op;
  float *out;
  const int32_t *tokens;
} EmbedCall;

static void embed_token(const void *arg, long t) {
  const EmbedCall *call = arg;
  const Matrix *table = &call->op->table;
  float *out = call->out + t * table->columns;
  table->unpack_row(out, table->weights, call->tokens[t], table->columns);
  if (call->op->scale != 1)
    for (long i = 0; i < table->columns; i++) out[i] *= call->op->scale;
}

void embed(const Embed *op, float *out, const Batch *batch) {
  EmbedCall call = {op, out, batch->tokens};
  for_each_token(op->workspace->pool, batch->count, embed_token, &call);
}

void run_embed(float *out, const int32_t *tokens, long count, long unused3, long unused4, const Embed *op) {
  (void)unused3, (void)unused4;
  embed(op, out, &(Batch){.tokens = tokens, .count = count});
}

/* ---- products ---- */

typedef struct {
  float *out;
  const float *gate_up;
  long ffn, gate;
} GateCall;

INLINE f32x16 gated(f32x16 x, long gate) { return gate == GATE_GELU ? gelu_f32(x) : silu_f32(x); }

static void gate_token(const void *arg, long t) {
  const GateCall *call = arg;
  const float *gate = call->gate_up + t * call->ffn * 2, *up = gate + call->ffn;
  float *out = call->out + t * call->ffn;
  long i = 0;
  for (; i + LANES <= call->ffn; i += LANES) {
    store_f32(out + i, gated(load_f32(gate + i), call->gate) * load_f32(up + i));
  }
  for (; i < call->ffn; i++) out[i] = gated(all_f32(gate[i]), call->gate)[0] * up[i];
}

typedef struct {
  const Linear *op;
  float *out;
  const float *x, *residual; /* [tokens][out_columns] */
} PostNormCall;

static void post_norm_token(const void *arg, long t) {
  const PostNormCall *call = arg;
  const Linear *op = call->op;
  long columns = op->out_columns, first = t * columns;
  const float *x = call->x + first;
  float *out = call->out + first, factor = rms_factor(x, columns, op->epsilon);
  for (long i = 0; i < columns; i++) out[i] = x[i] * factor * op->post_norm[i];
  if (call->residual)
    for (long i = 0; i < columns; i++) out[i] += call->residual[first + i];
}

/* The matrices of an operation times its input, side by side into rows of `stride`; the input is first converted to
 * whatever their weights ask for. */
static void multiply_all(const Linear *op, float *out, long stride, const float *x, const float *residual,
                         long tokens, const int32_t *rows) {
  const Workspace *w = op->workspace;
  Product products[MOST_MATRICES];
  MultiplyGroups functions[MOST_MATRICES];
  long floats = 0;
  for (long i = 0; i < op->num_matrices; i++) floats += op->matrices[i].is_float;
  Normalise n = {x, rows, op->norm, op->epsilon, tokens, op->columns, op->columns};
  if (floats < op->num_matrices) quantise(w->pool, &n, w->quantised);
  if (floats) normalise(w->pool, &n, w->normalised);
  for (long i = 0; i < op->num_matrices; i++) {
    const Matrix *m = &op->matrices[i];
    const void *activation = m->is_float ? (const void *)w->normalised : w->quantised;
    products[i] = (Product){m->weights, activation, out, m->bias, residual, m->rows, m->columns, tokens, stride};
    functions[i] = m->multiply;
    out += m->rows;
    if (residual) residual += m->rows;
  }
  multiply_together(w->pool, products, functions, (int)op->num_matrices);
}

void linear(const Linear *op, float *out, const float *x, const float *residual, const Batch *batch) {
  long tokens = op->last_row ? batch->num_wanted : batch->count;
  const int32_t *rows = op->last_row ? batch->wanted : NULL;
  if (!tokens) return;
  if (op->post_norm) {
    multiply_all(op, op->workspace->wide, op->out_columns, x, NULL, tokens, rows);
    PostNormCall call = {op, out, op->workspace->wide, residual};
    for_each_token(op->workspace->pool, tokens, post_norm_token, &call);
    return;
  }
  if (op->gate == UNGATED) {
    multiply_all(op, out, op->out_columns, x, residual, tokens, rows);
    return;
  }
  multiply_all(op, op->workspace->wide, 2 * op->out_columns, x, NULL, tokens, rows);
  GateCall call = {out, op->workspace->wide, op->out_columns, op->gate};
  for_each_token(op->workspace->pool, tokens, gate_token, &call);
}

static void linear_of_one_sequence(const Linear *op, float *out, const float *x, const float *residual, long count) {
  int32_t last = (int32_t)(count - 1);
  linear(op, out, x, residual, &(Batch){.wanted = &last, .num_wanted = 1, .count = count});
}

void run_linear(float *out, const float *x, long count, long unused3, long unused4, const Linear *op) {
  (void)unused3, (void)unused4;
  linear_of_one_sequence(op, out, x, NULL, count);
}

void run_linear_residual(float *out, const float *x, const float *residual, long count, long unused4,
                         const Linear *op) {
  (void)unused4;
  linear_of_one_sequence(op, out, x, residual, count);
}

/* ---- attention ---- */

typedef struct {
  const SelfAttention *op;
  const float *qkv;
  KVCache cache;
  const Batch *batch;
} AttentionCall;

static void rotate(float *head, const float *rope, long rotated, long adjacent) {
  long pairs = rotated / 2, step = adjacent ? 2 : 1, apart = adjacent ? 1 : pairs;
  for (long i = 0; i < pairs; i++) {
    float a = head[i * step], b = head[i * step + apart], cosine = rope[2 * i], sine = rope[2 * i + 1];
    head[i * step] = a * cosine - b * sine;
    head[i * step + apart] = a * sine + b * cosine;
  }
}

static void normalise_head(float *head, const float *norm, long size, float epsilon) {
  float factor = rms_factor(head, size, epsilon);
  for (long i = 0; i < size; i++) head[i] *= factor * norm[i];
}

/* Normalises, rotates and scales a token's queries; its keys likewise, and they and its values go to the cache. */
static void prepare_token(const void *arg, long t) {
  const AttentionCall *call = arg;
  const SelfAttention *op = call->op;
  long position = call->batch->positions[t], size = op->cache.head_size, kv_heads = op->cache.kv_heads;
  const float *rope = op->rope + position * op->rotated;
  const float *from = call->qkv + t * (op->heads + 2 * kv_heads) * size;
  float *queries = op->workspace->queries + t * op->heads * size;
  memcpy(queries, from, sizeof(float) * op->heads * size);
  for (long h = 0; h < op->heads; h++) {
    float *head = queries + h * size;
    if (op->q_norm) normalise_head(head, op->q_norm, size, op->epsilon);
    rotate(head, rope, op->rotated, op->adjacent);
    for (long i = 0; i < size; i++) head[i] *= op->query_scale;
  }
  const float *keys = from + op->heads * size, *values = keys + kv_heads * size;
  for (long h = 0; h < kv_heads; h++) {
    float key[MOST_HEAD_SIZE];
    memcpy(key, keys + h * size, sizeof(float) * size);
    if (op->k_norm) normalise_head(key, op->k_norm, size, op->epsilon);
    rotate(key, rope, op->rotated, op->adjacent);
    op->store_kv(&call->cache, call->batch->slots[t], h, position, key, values + h * size);
  }
}

void self_attention(const SelfAttention *op, float *out, char *rows, const float *qkv, const Batch *batch) {
  const Workspace *w = op->workspace;
  AttentionCall call = {op, qkv, op->cache, batch};
  call.cache.rows = rows;
  for_each_token(w->pool, batch->count, prepare_token, &call);
  Attention attention = {call.cache,       w->queries,   out,       batch->slots,
                         batch->positions, batch->count, op->heads, op->heads * op->cache.head_size, op->window, w->scratch};
  op->attend(w->pool, &attention);
}

void run_attention(float *out, char *rows, const float *qkv, long start, long count, const SelfAttention *op) {
  const Workspace *w = op->workspace;
  for (long t = 0; t < count; t++) {
    w->slots[t] = 0;
    w->positions[t] = (int32_t)(start + t);
  }
  self_attention(op, out, rows, qkv, &(Batch){.slots = w->slots, .positions = w->positions, .count = count});
}
