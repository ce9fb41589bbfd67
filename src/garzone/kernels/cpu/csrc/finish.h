/* The end of a matrix product: sixteen finished rows of one token go to memory. */
#ifndef GARZONE_FINISH_H
#define GARZONE_FINISH_H

#include "lanes.h"
#include "linear.h"

INLINE void finish_rows(const Product *p, long token, long first_row, f32x16 y) {
  long rest = p->rows - first_row;
  float out[LANES];
  if (rest >= LANES) {
    if (p->bias) y += load_f32(p->bias + first_row);
    if (p->finish) {
      store_f32(out, y);
      p->finish(p, token, first_row, out);
      return;
    }
    long at = token * p->out_stride + first_row;
    if (p->residual) y += load_f32(p->residual + at);
    store_f32(p->out + at, y);
    return;
  }
  /* the last rows of a matrix whose number of rows is no multiple of sixteen */
  store_f32(out, y);
  for (long l = 0; l < rest; l++)
    if (p->bias) out[l] += p->bias[first_row + l];
  if (p->finish) {
    p->finish(p, token, first_row, out);
    return;
  }
  for (long l = 0; l < rest; l++) {
    long at = token * p->out_stride + first_row + l;
    p->out[at] = out[l] + (p->residual ? p->residual[at] : 0);
  }
}

#endif
