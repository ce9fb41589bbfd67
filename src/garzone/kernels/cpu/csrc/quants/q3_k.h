/* Q3_K: sixteen sub-blocks of sixteen columns, each with a six-bit factor; w = d * s * (q - 4). */
enum { BLOCK_COLUMNS = 256, SUB_COLUMNS = 16, ZERO = 4, IS_SIGNED = 0, HAS_MINIMUM = 0 };

typedef struct { uint8_t high[32], q[64], factors[12]; half d; } Native;
typedef struct { half d[LANES]; int8_t factors[16][LANES]; Plane2 low[8]; Plane1 high[8]; } Rows;

INLINE u8x64 quad(const Rows *r, int group, int i) {
  return plane2(&r->low[group], i, 0) | plane1(&r->high[group], i, 2);
}
INLINE f32x16 scale(const Rows *r, int sub) { return from_half(r->d) * float_of_i8(r->factors[sub]); }
INLINE f32x16 minimum(const Rows *r, int sub) { return (void)r, (void)sub, all_f32(0); }

static void put_row(Rows *r, int row, const Native *n) {
  for (int group = 0; group < 8; group++) {
    uint8_t q[GROUP];
    for (int i = 0; i < GROUP; i++) {
      int low = n->q[group / 4 * 32 + i] >> group % 4 * 2 & 3, high = n->high[i] >> group & 1;
      q[i] = (uint8_t)(low | high << 2);
    }
    put_plane2(&r->low[group], row, q, 0);
    put_plane1(&r->high[group], row, q, 2);
  }
  for (int sub = 0; sub < 16; sub++) {
    int low = n->factors[sub % 8] >> sub / 8 * 4 & 15, high = n->factors[8 + sub % 4] >> sub / 4 * 2 & 3;
    r->factors[sub][row] = (int8_t)((low | high << 4) - 32);
  }
  r->d[row] = n->d;
}
