/* The end of a matrix product: sixteen finished rows of one token go to memory. */
#ifndef GARZONE_FINISH_H
#define GARZONE_FINISH_H

#include "lanes.h"
#include "linear.h"

INLINE void finish_rows(const Product *p, long token, long first_row, f32x16 y) {
  long at = token * p->out_stride + first_row, rest = p->rows - first_row;
  if (rest >= LANES) {
    if (p->bias) y += load_f32(p->bias + first_row);
    if (p->residual) y += load_f32(p->residual + at);
    store_f32(p->out + at, y);
    return;
  }
  /* the last rows of a matrix whose number of rows is no multiple of sixteen */
  float out[LANES];
  store_f32(out, y);
  for (long l = 0; l < rest; l++) {
    if (p->bias) out[l] += p->bias[first_row + l];
    if (p->residual) out[l] += p->residual[at + l];
    p->out[at + l] = out[l];
  }
}

#endif
