/* IQ4_XS: eight sub-blocks of 32 columns with a six-bit factor each; w = d * (s - 32) * values[q]. */
#include "iq4_values.h"
enum { BLOCK_COLUMNS = 256, SUB_COLUMNS = 32, ZERO = SIGNED_BIAS, IS_SIGNED = 1, HAS_MINIMUM = 0 };

typedef struct { half d; uint16_t factors_high; uint8_t factors_low[4], q[128]; } Native;
typedef struct { half d[LANES]; int8_t factors[8][LANES]; Plane4 q[8]; } Rows;

INLINE u8x64 quad(const Rows *r, int group, int i) { return lookup(iq4_values, plane4(&r->q[group], i)); }
INLINE f32x16 scale(const Rows *r, int sub) { return from_half(r->d) * float_of_i8(r->factors[sub]); }
INLINE f32x16 minimum(const Rows *r, int sub) { return (void)r, (void)sub, all_f32(0); }

static void put_row(Rows *r, int row, const Native *n) {
  for (int group = 0; group < 8; group++) {
    uint8_t q[GROUP];
    split_nibbles(q, n->q + group * 16);
    put_plane4(&r->q[group], row, q);
    int low = n->factors_low[group / 2] >> group % 2 * 4 & 15, high = n->factors_high >> group * 2 & 3;
    r->factors[group][row] = (int8_t)((low | high << 4) - 32);
  }
  r->d[row] = n->d;
}
