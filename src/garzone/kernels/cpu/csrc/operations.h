/* The operations that a decoder is made of, as kernels/registry.py names them; see operations.c. */
#ifndef GARZONE_OPERATIONS_H
#define GARZONE_OPERATIONS_H

#include "attention.h"
#include "linear.h"

enum { MOST_MATRICES = 3 }; /* query, key and value */

/* Memory that operations share, since they run one after the other; sizes are those of the greatest need. */
typedef struct {
  Pool *pool;
  void *quantised;   /* activation_bytes(rows, columns) */
  float *normalised; /* [rows][columns] */
  float *wide;       /* [rows][2 * ffn], or [rows][out_columns] where the result is normalised */
  float *queries;    /* [rows][heads * head_size] */
  int32_t *slots, *positions; /* [rows] */
  void *scratch;     /* attention_scratch_bytes(..) */
} Workspace;

typedef struct {
  MultiplyGroups multiply;
  UnpackRow unpack_row;
  const void *weights;
  const float *bias; /* or NULL */
  long rows, columns, is_float;
} Matrix;

/* The rows of one step: tokens of one or several sequences, each at its place in the cache. Rows of one slot ascend in
 * position. */
typedef struct {
  const int32_t *tokens, *slots, *positions; /* [count] */
  const int32_t *wanted;                     /* [num_wanted]: the rows whose logits are asked for, ascending */
  long count, num_wanted;
} Batch;

/* Rows of a table. */
typedef struct {
  const Workspace *workspace;
  Matrix table;
  float scale; /* of every element */
} Embed;

/* What gated products multiply by: x / (1 + e^-x), or GELU's approximation by tanh. */
typedef enum { UNGATED, GATE_SILU, GATE_GELU } Gate;

/* residual + post_norm(act(norm(x) * W^T + bias)), with only the parts that are asked for. */
typedef struct {
  const Workspace *workspace;
  Matrix matrices[MOST_MATRICES];
  long num_matrices;
  const float *norm;      /* [columns], or NULL */
  const float *post_norm; /* [out_columns], or NULL */
  float epsilon;          /* of both */
  long columns, out_columns;
  long gate;     /* Gate; unless UNGATED there are two matrices, and gate(first) * second is the result */
  long last_row; /* only the rows that are wanted are computed */
} Linear;

/* Rotation of queries and keys, KV cache, softmax. */
typedef struct {
  const Workspace *workspace;
  void (*attend)(Pool *, const Attention *); /* of the type of rows that the cache has */
  void (*store_kv)(const KVCache *, long slot, long kv_head, long position, const float *key, const float *value);
  KVCache cache;            /* without its rows, which come with a call */
  long heads;
  const float *rope;        /* [positions][rotated / 2][cosine, sine] */
  const float *q_norm, *k_norm; /* [head_size], or NULL */
  float epsilon, query_scale;
  long rotated;  /* how many elements of a head are rotated; the others stay */
  long adjacent; /* rotated pairs are (2i, 2i + 1); otherwise (i, i + rotated / 2) */
  long window;   /* positions that a token sees, its own included; 0 for all */
} SelfAttention;

void embed(const Embed *op, float *out, const Batch *batch);
void linear(const Linear *op, float *out, const float *x, const float *residual, const Batch *batch);
/* `rows` are those of one layer; see KVCache. */
void self_attention(const SelfAttention *op, float *out, char *rows, const float *qkv, const Batch *batch);

/* Entry points for one sequence in slot 0, whose last row is the one wanted. The last argument is the operation; see trampoline.py for how it gets there. */
void run_embed(float *out, const int32_t *tokens, long count, long unused3, long unused4, const Embed *op);
void run_linear(float *out, const float *x, long count, long unused3, long unused4, const Linear *op);
void run_linear_residual(float *out, const float *x, const float *residual, long count, long unused4, const Linear *op);
void run_attention(float *out, char *rows, const float *qkv, long start, long count, const SelfAttention *op);

#endif
