/* MXFP4: four-bit floats (E2M1) with a power of two for every thirty-two columns; w = 2^(e - 128) * values[q]. */
#define V(value) (uint8_t)(value + SIGNED_BIAS)
/* Twice the float's value, so that all are whole: the factor is halved for it. */
static const uint8_t fp4_values[16] = {V(0), V(1),  V(2),  V(3),  V(4),  V(6),  V(8),  V(12),
                                       V(0), V(-1), V(-2), V(-3), V(-4), V(-6), V(-8), V(-12)};
#undef V
enum { BLOCK_COLUMNS = 32, SUB_COLUMNS = 32, ZERO = SIGNED_BIAS, IS_SIGNED = 1, HAS_MINIMUM = 0 };

typedef struct { uint8_t e, q[16]; } Native;
typedef struct { uint8_t e[LANES]; Plane4 q; } Rows;

INLINE u8x64 quad(const Rows *r, int group, int i) { return lookup(fp4_values, plane4(&r[group].q, i)); }
/* The exponent moved to its place in a float, one lower for the halving; 0 and 1, below 1e-38, become zero. */
INLINE f32x16 scale(const Rows *r, int sub) {
  i32x16 e = __builtin_convertvector(load_u8(r[sub].e), i32x16) - 1;
  return (f32x16)((e & (e > 0)) << 23);
}
INLINE f32x16 minimum(const Rows *r, int sub) { return (void)r, (void)sub, all_f32(0); }

static void put_row(Rows *r, int row, const Native *n) {
  uint8_t q[GROUP];
  split_nibbles(q, n->q);
  put_plane4(&r->q, row, q);
  r->e[row] = n->e;
}
