// File: nfold/nfold.h
//
// Everything a trainer needs, in one include.
#pragma once

#include "nfold/activation_checkpoint.h"
#include "nfold/collectives.h"
#include "nfold/config.h"
#include "nfold/engine.h"
#include "nfold/errors.h"
#include "nfold/gather.h"
#include "nfold/group.h"
#include "nfold/host_memory.h"
#include "nfold/init.h"
#include "nfold/mesh.h"
#include "nfold/params.h"
#include "nfold/report.h"
#include "nfold/world.h"
