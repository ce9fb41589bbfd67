/* Several matrix products in one loop over the pool; see products.c. */
#ifndef GARZONE_PRODUCTS_H
#define GARZONE_PRODUCTS_H

#include "linear.h"

void multiply_together(Pool *pool, const Product *products, const MultiplyGroups *multiply, int count);

#endif
