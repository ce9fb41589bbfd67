/* Activations as the integer kernels read them: eight bits in blocks of 32 columns, quads first.
 *
 * A tile holds one block of several tokens; for each quad the tokens' four bytes lie side by side, so a matrix product
 * reads its activations from front to back. One format serves every quantised weight type: matrices of one layer that
 * are packed differently share the activations they have in common.
 */
#ifndef GARZONE_ACTIVATION_H
#define GARZONE_ACTIVATION_H

#include "planes.h"
#include "pool.h"

#define ACTIVATION_TILE(tokens)                                                   \
  struct {                                                                        \
    int8_t q[QUADS][tokens][QUAD];                                                \
    float scale[tokens];                                                          \
    float sum[tokens];           /* scale * (sum of q), for minima */             \
    int32_t half_sum[2][tokens]; /* of q, sixteen columns each, for offsets */    \
  }
typedef ACTIVATION_TILE(1) Activation;                   /* one token: a vector times a matrix */
typedef ACTIVATION_TILE(TOKENS_PER_TILE) ActivationTile; /* several */

typedef struct {
  const float *x;       /* [tokens][stride] */
  const int32_t *rows;  /* [tokens]: which rows of x the tokens are; NULL for all in order */
  const float *norm;    /* [columns], or NULL */
  float epsilon;
  long tokens, columns, stride;
} Normalise;

long activation_bytes(long tokens, long columns);
/* To Activation[columns / 32] for one token, else ActivationTile[tiles][columns / 32]. */
void quantise(Pool *pool, const Normalise *n, void *to);
/* To float[tokens][columns]. */
void normalise(Pool *pool, const Normalise *n, float *to);
/* 1 / sqrt(mean(x^2) + epsilon) */
float rms_factor(const float *x, long columns, float epsilon);

/* Rounds to nearest, the largest magnitude of the block becoming 127. */
INLINE void quantise_block(const float *x, int8_t *q, int quad_stride, float *scale, float *sum, int32_t *half_sum,
                           int half_stride) {
  f32x16 first = load_f32(x), second = load_f32(x + LANES);
  float largest = max_lanes(max_f32(abs_f32(first), abs_f32(second)));
  float inverse = largest > 0 ? 127.0f / largest : 0;
  i32x16 a = round_to_int(first * inverse), b = round_to_int(second * inverse);
  int8_t bytes[GROUP];
  store_low_bytes(bytes, a);
  store_low_bytes(bytes + LANES, b);
  for (int i = 0; i < QUADS; i++) memcpy(q + i * quad_stride, bytes + QUAD * i, QUAD);
  half_sum[0] = sum_lanes_i32(a);
  half_sum[half_stride] = sum_lanes_i32(b);
  *scale = largest / 127.0f;
  *sum = *scale * (float)(half_sum[0] + half_sum[half_stride]);
}

INLINE void quantise_into_vector(Activation *to, const float *x) {
  quantise_block(x, to->q[0][0], QUAD, to->scale, to->sum, to->half_sum[0], 1);
}
INLINE void quantise_into_tile(ActivationTile *to, const float *x, int token) {
  quantise_block(x, to->q[0][token], TOKENS_PER_TILE * QUAD, to->scale + token, to->sum + token,
                 &to->half_sum[0][token], TOKENS_PER_TILE);
}

#endif
