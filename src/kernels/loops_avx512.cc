#define NFOLD_LOOPS_NAME kAvx512Loops
#include "kernels/loops.inc.h"
