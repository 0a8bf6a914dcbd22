/* A training step over the caller's MPI communicator equals the definition, and others are refused by name. */
#include <mpi.h>

#include "check.h"
#include "training_step.h"

static struct tensors expected, results, summed;

int main(int argc, char** argv) {
  int provided = 0, size = 0, world_rank = 0;
  tessera_comm* comm = NULL;
  MPI_Comm none = MPI_COMM_NULL, reversed = MPI_COMM_NULL;
  CHECK_REFUSED(tessera_comm_create_mpi(&none, 0, &comm), TESSERA_FAILED_PRECONDITION, "MPI is not initialised");
  CHECK(MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided) == MPI_SUCCESS);
  CHECK(provided == MPI_THREAD_MULTIPLE);
  MPI_Comm_rank(MPI_COMM_WORLD, &world_rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  CHECK_REFUSED(tessera_comm_create_mpi(&none, 0, &comm), TESSERA_INVALID_ARGUMENT, "mpi_comm is MPI_COMM_NULL");

  /* Not MPI_COMM_WORLD: the same processes in the opposite order. Freed at once, because duplicates are used. */
  MPI_Comm_split(MPI_COMM_WORLD, 0, -world_rank, &reversed);
  CHECK_OK(tessera_comm_create_mpi(&reversed, 0, &comm));
  MPI_Comm_free(&reversed);
  int rank = -1;
  CHECK_OK(tessera_comm_rank(comm, &rank));
  CHECK(rank == size - 1 - world_rank);

  tessera_plan* const wrong = make_plan("ring", size + 1);
  tessera_attention* attention = NULL;
  CHECK_REFUSED(tessera_attention_create(comm, wrong, NULL, &attention), TESSERA_INVALID_ARGUMENT,
                "and the communicator has");
  tessera_plan_destroy(wrong);

  fill_inputs(&expected);
  run_by_definition(&expected);
  const char* const strategies[] = {"zigzag", "tree"};
  for (size_t s = 0; s < sizeof strategies / sizeof strategies[0]; ++s) {
    tessera_plan* const plan = make_plan(strategies[s], size);
    fill_inputs(&results);
    run_training_step(comm, plan, s % 2 == 1, &results);
    tessera_plan_destroy(plan);
    /* Every token's results are on one rank and zero elsewhere; inputs are on all. */
    struct tensors* const sum = &summed;
    MPI_Allreduce(&results, sum, (int)(sizeof results / sizeof(float)), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    struct tensors inputs;
    fill_inputs(&inputs);
    memcpy(sum->query, inputs.query, sizeof inputs.query);
    memcpy(sum->key, inputs.key, sizeof inputs.key);
    memcpy(sum->value, inputs.value, sizeof inputs.value);
    memcpy(sum->output_gradient, inputs.output_gradient, sizeof inputs.output_gradient);
    memcpy(sum->sinks, inputs.sinks, sizeof inputs.sinks);
    const double difference = largest_difference(sum, &expected);
    if (world_rank == 0) printf("mpi %s %d ranks: %.1e from the definition\n", strategies[s], size, difference);
    CHECK(difference < 5e-6);
  }
  tessera_comm_destroy(comm);
  MPI_Finalize();
  return 0;
}
