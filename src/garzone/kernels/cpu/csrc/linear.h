/* What a matrix library offers, and what it is asked: out = activation * weights^T (+ bias) (+ residual).
 *
 * linear.c is compiled once for every quantised weight type, linear_float.c for every float type; all have this face.
 */
#ifndef GARZONE_LINEAR_H
#define GARZONE_LINEAR_H

#include "pool.h"

typedef struct Product Product;

/* Called for sixteen finished rows of one token, instead of storing them; the rows after the last are zero. */
typedef void (*Finish)(const Product *product, long token, long first_row, const float y[16]);

struct Product {
  const void *weights;    /* as `pack` wrote them */
  const void *activation; /* quantised: Activation[columns / 32] for one token, else ActivationTile[tiles][columns / 32];
                             for float weights: float[tokens][columns] */
  float *out;             /* [tokens][out_stride] */
  const float *bias;      /* [rows], or NULL */
  const float *residual;  /* [tokens][out_stride], or NULL; may be `out` itself */
  long rows, columns, tokens, out_stride;
  Finish finish;          /* or NULL */
  void *finish_arg;
};

/* What every matrix library exports:
 *   long packed_bytes(long rows, long columns)
 *   void pack(Pool *, void *to, const void *const *rows, long num_rows, long columns)   rows as they lie in the file
 *   void unpack_row(float *to, const void *packed, long row, long columns)
 *   void multiply(Pool *, const Product *) */
typedef void (*Multiply)(Pool *, const Product *);

#endif
