/* What a matrix library offers, and what it is asked: out = activation * weights^T (+ bias) (+ residual).
 *
 * linear.c is compiled once for every quantised weight type, linear_float.c for every float type; all have this face.
 */
#ifndef GARZONE_LINEAR_H
#define GARZONE_LINEAR_H

#include "pool.h"

typedef struct {
  const void *weights;    /* as `pack` wrote them */
  const void *activation; /* quantised: Activation[columns / 32] for one token, else
                             ActivationTile[tiles][columns / 32]; for float weights: float[tokens][columns] */
  float *out;             /* [tokens][out_stride] */
  const float *bias;      /* [rows], or NULL */
  const float *residual;  /* [tokens][out_stride], or NULL; may be `out` itself */
  long rows, columns, tokens, out_stride;
} Product;

enum { ROWS_PER_GROUP = 16 };
static inline long row_groups(long rows) { return (rows + ROWS_PER_GROUP - 1) / ROWS_PER_GROUP; }

/* What every matrix library exports:
 *   long packed_bytes(long rows, long columns)
 *   long pack(Pool *, void *to, const void *const *rows, long num_rows, long columns)   rows as they lie in the file
 *   void unpack_row(float *to, const void *packed, long row, long columns)
 *   void multiply_groups(const Product *, long first, long last) */
typedef void (*MultiplyGroups)(const Product *, long first, long last);
typedef void (*UnpackRow)(float *to, const void *packed, long row, long columns);

#endif
