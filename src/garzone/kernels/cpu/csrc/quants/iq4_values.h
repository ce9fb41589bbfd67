/* What the four bits of IQ4_NL and IQ4_XS stand for (kvalues_iq4nl in ggml-common.h), as dot_signed wants them. */
#define V(value) (uint8_t)(value + SIGNED_BIAS)
static const uint8_t iq4_values[16] = {V(-127), V(-104), V(-83), V(-65), V(-49), V(-35), V(-22), V(-10),
                                       V(1),    V(13),   V(25),  V(38),  V(53),  V(69),  V(89),  V(113)};
#undef V
