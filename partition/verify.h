// Static proof that a plan is right, without ranks: see the list in Verify().
#pragma once

#include "partition/decode.h"
#include "partition/plan.h"
#include "runtime/base/status.h"

namespace tessera {

// Checks, in this order, and names rank, step and tokens in the error:
//  1. structure: slots, regions, tiles and dependencies are in range; dependencies point backwards;
//  2. messages: every send has exactly one receive of the same (sender, receiver, tag) and bytes; exchanges of a group
//     match pair by pair as streams of rows, whose cutting into parts may differ;
//  3. progress: no deadlock when sends complete only together with their receives, compute steps run in program order
//     and exchanges start in program order;
//  4. slot lifetimes: every pair of conflicting accesses to overlapping rows of a slot is ordered by the rank's own
//     dependencies (compute steps order each other);
//  5. contents: compute steps read the tokens and heads they claim; every row of the caller's outputs is written once;
//  6. coverage: every unmasked (query, key) pair of every query head is attended exactly once and its partial reaches
//     the owner's result exactly once; backward it reaches the query gradient of its query's owner, and the key and the
//     value gradient of its key's owner, exactly once each;
//  7. masked-out work: every tile has at least one unmasked pair.
Status Verify(const Plan& plan);

// The same of a decode plan, whose coverage is: where tokens are sharded, every row and head of an output is made of
// every rank's part of the cache exactly once; otherwise of the owner's cache exactly once.
Status Verify(const DecodePlan& plan);

}  // namespace tessera
