/* Runs kernels on numbers from stdin and writes what they make of them to stdout, for processors that are emulated and
 * have no Python; see test_neon.py. Linked with matrix kernels of one type, and with attention over one type of rows.
 * Usage: emulated matrix ROWS COLUMNS TOKENS IS_FLOAT
 *        emulated attention HEADS KV_HEADS HEAD_SIZE POSITIONS TOKENS CHUNK */
#include "activation.h"
#include "operations.h"
#include "products.h"

#include <stdio.h>
#include <stdlib.h>

Pool *pool_start(unsigned);
long packed_bytes(long rows, long columns);
long pack(Pool *, void *to, const void *const *rows, long num_rows, long columns);
void unpack_row(float *to, const void *packed, long row, long columns);
void multiply_groups(const Product *, long first, long last);

static void *allocate(long bytes) {
  void *memory = aligned_alloc(64, (size_t)(bytes + 127) / 64 * 64);
  if (!memory) exit(3);
  return memset(memory, 0, (size_t)bytes);
}
static void *input(long bytes) {
  void *memory = allocate(bytes);
  if (fread(memory, 1, (size_t)bytes, stdin) != (size_t)bytes) exit(4);
  return memory;
}
static void output(const void *memory, long bytes) {
  if (fwrite(memory, 1, (size_t)bytes, stdout) != (size_t)bytes) exit(5);
}

/* In: bytes of a row, then the matrix and the activations. Out: the unpacked matrix, the activations as they were used
 * (sums of a product with the identity would hide them), the product. */
static void matrix(Pool *pool, long rows, long columns, long tokens, long is_float) {
  long row_bytes = *(int64_t *)input(8);
  const char *raw = input(rows * row_bytes);
  float *x = input(tokens * columns * 4);
  const void **pointers = allocate(rows * (long)sizeof(void *));
  for (long r = 0; r < rows; r++) pointers[r] = raw + r * row_bytes;
  void *packed = allocate(packed_bytes(rows, columns));
  if (pack(pool, packed, pointers, rows, columns)) exit(6);
  float *row = allocate(columns * 4);
  for (long r = 0; r < rows; r++) {
    unpack_row(row, packed, r, columns);
    output(row, columns * 4);
  }
  Normalise n = {x, NULL, NULL, 0, tokens, columns, columns};
  void *quantised = allocate(is_float ? 64 : activation_bytes(tokens, columns));
  if (!is_float) {
    quantise(pool, &n, quantised);
    output(quantised, activation_bytes(tokens, columns));
  }
  float *out = allocate(tokens * rows * 4);
  Product product = {packed, is_float ? (void *)x : quantised, out, NULL, NULL, rows, columns, tokens, rows};
  MultiplyGroups function = multiply_groups;
  multiply_together(pool, &product, &function, 1);
  output(out, tokens * rows * 4);
}

/* In: rope table and rows of q, k and v. Out: what attention gives, CHUNK tokens at a time. */
static void attention(Pool *pool, long heads, long kv_heads, long size, long positions, long tokens, long chunk) {
  const float *rope = input(positions * size * 4);
  long width = (heads + 2 * kv_heads) * size;
  const float *qkv = input(tokens * width * 4);
  Workspace w = {.pool = pool,
                 .queries = allocate(chunk * heads * size * 4),
                 .slots = allocate(chunk * 4),
                 .positions = allocate(chunk * 4),
                 .scratch = allocate(attention_scratch_bytes(chunk, heads, kv_heads, pool->threads, positions))};
  long span_bytes = kv_heads * head_span_bytes(size), bytes = (positions + SPAN - 1) / SPAN * span_bytes;
  char *cache = allocate(bytes);
  SelfAttention op = {.workspace = &w,
                      .attend = attend,
                      .store_kv = store_kv,
                      .cache = {NULL, bytes, span_bytes, kv_heads, size, positions},
                      .heads = heads,
                      .rope = rope,
                      .query_scale = 1 / __builtin_sqrtf((float)size),
                      .rotated = size,
                      .adjacent = 1};
  float *out = allocate(chunk * heads * size * 4);
  for (long at = 0; at < tokens; at += chunk) {
    long count = tokens - at < chunk ? tokens - at : chunk;
    run_attention(out, cache, qkv + at * width, at, count, &op);
    output(out, count * heads * size * 4);
  }
}

int main(int argc, char **argv) {
  long a[8] = {0};
  for (int i = 2; i < argc && i < 10; i++) a[i - 2] = atol(argv[i]);
  Pool *pool = pool_start(2);
  if (argc == 6) matrix(pool, a[0], a[1], a[2], a[3]);
  else if (argc == 8) attention(pool, a[0], a[1], a[2], a[3], a[4], a[5]);
  else return 2;
  return 0;
}
