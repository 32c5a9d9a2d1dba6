#define NFOLD_LOOPS_NAME kBaselineLoops
#include "kernels/loops.inc.h"
