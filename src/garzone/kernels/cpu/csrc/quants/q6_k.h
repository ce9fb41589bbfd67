/* Q6_K: sixteen sub-blocks of sixteen columns, each with a signed byte as factor; w = d * s * (q - 32). */
enum { BLOCK_COLUMNS = 256, SUB_COLUMNS = 16, ZERO = 32, IS_SIGNED = 0, HAS_MINIMUM = 0 };

typedef struct { uint8_t low[128], high[64]; int8_t factors[16]; half d; } Native;
typedef struct { half d[LANES]; int8_t factors[16][LANES]; Plane4 low[8]; Plane2 high[8]; } Rows;

INLINE u8x64 quad(const Rows *r, int group, int i) {
  return plane4(&r->low[group], i) | plane2(&r->high[group], i, 4);
}
INLINE f32x16 scale(const Rows *r, int sub) { return from_half(r->d) * float_of_i8(r->factors[sub]); }
INLINE f32x16 minimum(const Rows *r, int sub) { return (void)r, (void)sub, all_f32(0); }

/* Of every 128 columns, the low nibbles of 64 bytes are the first half and the high nibbles the second; 32 bytes hold
 * two more bits of four groups. */
static void put_row(Rows *r, int row, const Native *n) {
  for (int group = 0; group < 8; group++) {
    int part = group / 4, quarter = group % 4;
    uint8_t q[GROUP];
    for (int i = 0; i < GROUP; i++) {
      int low = n->low[part * 64 + quarter % 2 * 32 + i] >> quarter / 2 * 4 & 15;
      int high = n->high[part * 32 + i] >> quarter * 2 & 3;
      q[i] = (uint8_t)(low | high << 4);
    }
    put_plane4(&r->low[group], row, q);
    put_plane2(&r->high[group], row, q, 4);
  }
  for (int sub = 0; sub < 16; sub++) r->factors[sub][row] = n->factors[sub];
  r->d[row] = n->d;
}
