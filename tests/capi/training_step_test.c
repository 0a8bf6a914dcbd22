/* A training step on 2 to 4 ranks equals one on 1 rank and the definition: over threads and over a caller's transport,
 * dense and strided. */
#include "training_step.h"

#include <pthread.h>

#include "check.h"
#include "mailbox.h"

enum { kMaxRanks = 4 };

struct rank_arguments {
  tessera_comm* comm;
  const tessera_plan* plan;
  int strided;
  struct tensors* tensors;
};

static void* rank_main(void* data) {
  const struct rank_arguments* const arguments = data;
  run_training_step(arguments->comm, arguments->plan, arguments->strided, arguments->tensors);
  tessera_comm_destroy(arguments->comm);
  return NULL;
}

static void run_ranks(tessera_comm** comms, int ranks, const tessera_plan* plan, int strided, struct tensors* tensors) {
  pthread_t threads[kMaxRanks];
  struct rank_arguments arguments[kMaxRanks];
  for (int r = 0; r < ranks; ++r) {
    arguments[r] = (struct rank_arguments){comms[r], plan, strided, tensors};
    CHECK(pthread_create(&threads[r], NULL, rank_main, &arguments[r]) == 0);
  }
  for (int r = 0; r < ranks; ++r) CHECK(pthread_join(threads[r], NULL) == 0);
}

static struct tensors expected, alone, together;

static void check_results(const char* door, const char* strategy, int ranks, const struct tensors* results) {
  const double from_definition = largest_difference(results, &expected),
               from_one_rank = largest_difference(results, &alone);
  printf("%-8s %-9s %d ranks: %.1e from the definition, %.1e from one rank\n", door, strategy, ranks, from_definition,
         from_one_rank);
  CHECK(from_definition < 5e-6 && from_one_rank < 5e-6);
}

int main(void) {
  const char* const strategies[] = {"ring", "zigzag", "balanced", "allgather", "ulysses", "tree"};
  tessera_comm* comms[kMaxRanks];
  CHECK_OK(tessera_check_version(TESSERA_API_VERSION));
  fill_inputs(&expected);
  run_by_definition(&expected);

  fill_inputs(&alone);
  tessera_plan* plan = make_plan("auto", 1);
  CHECK_OK(tessera_comm_create_self(&comms[0]));
  run_ranks(comms, 1, plan, 0, &alone);
  tessera_plan_destroy(plan);
  check_results("self", "auto", 1, &alone);

  for (size_t s = 0; s < sizeof strategies / sizeof strategies[0]; ++s) {
    for (int ranks = 2; ranks <= kMaxRanks; ++ranks) {
      if (strcmp(strategies[s], "ulysses") == 0 && ranks == 3) continue; /* heads do not divide */
      plan = make_plan(strategies[s], ranks);

      fill_inputs(&together);
      CHECK_OK(tessera_comm_create_inproc(ranks, 0, comms));
      run_ranks(comms, ranks, plan, ranks % 2, &together);
      check_results("inproc", strategies[s], ranks, &together);

      struct mailbox mailbox;
      struct mailbox_rank ends[kMaxRanks];
      mailbox_init(&mailbox);
      for (int r = 0; r < ranks; ++r) {
        ends[r] = (struct mailbox_rank){&mailbox, r};
        const tessera_callbacks callbacks = mailbox_callbacks(&ends[r], ranks);
        CHECK_OK(tessera_comm_create_callbacks(&callbacks, &comms[r]));
      }
      fill_inputs(&together);
      run_ranks(comms, ranks, plan, 1 - ranks % 2, &together);
      check_results("callback", strategies[s], ranks, &together);
      CHECK(mailbox.messages == NULL && mailbox.receives == NULL && mailbox.aborts == 0);
      mailbox_free(&mailbox);
      tessera_plan_destroy(plan);
    }
  }
  return 0;
}
