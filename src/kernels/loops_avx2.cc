#define NFOLD_LOOPS_NAME kAvx2Loops
#include "kernels/loops.inc.h"
