/* Peers that never come, are dead, fail, or disagree, over a caller's transport: an error on every survivor, no hang.
 */
#include <pthread.h>
#include <time.h>

#include "check.h"
#include "mailbox.h"
#include "training_step.h"

static struct mailbox mailbox;
static struct mailbox_rank ends[2];

static tessera_comm* make_comm(int rank, void (*change)(tessera_callbacks*)) {
  tessera_comm* comm = NULL;
  ends[rank] = (struct mailbox_rank){&mailbox, rank};
  tessera_callbacks callbacks = mailbox_callbacks(&ends[rank], 2);
  callbacks.deadline_ms = 300;
  if (change != NULL) change(&callbacks);
  CHECK_OK(tessera_comm_create_callbacks(&callbacks, &comm));
  return comm;
}

static void without_alive(tessera_callbacks* callbacks) {
  callbacks->alive = NULL;
}

static int failing_test(void* context, void* request, int* done) {
  (void)context, (void)request, (void)done;
  return 17;
}
static void with_failing_test(tessera_callbacks* callbacks) {
  callbacks->test = failing_test;
}

static void* create_other_plan(void* data) {
  tessera_comm* const comm = data;
  tessera_plan* const plan = make_plan("zigzag", 2);
  tessera_attention* attention = NULL;
  CHECK_REFUSED(tessera_attention_create(comm, plan, NULL, &attention), TESSERA_FAILED_PRECONDITION,
                "ranks disagree on the plan");
  tessera_plan_destroy(plan);
  return NULL;
}

int main(void) {
  tessera_attention* attention = NULL;
  tessera_plan* const plan = make_plan("ring", 2);

  /* Rank 1 never comes, and nothing tells. */
  mailbox_init(&mailbox);
  tessera_comm* comm = make_comm(0, without_alive);
  const time_t begin = time(NULL);
  CHECK_REFUSED(tessera_attention_create(comm, plan, NULL, &attention), TESSERA_DEADLINE_EXCEEDED,
                "rank 0 has waited 0.3 s");
  CHECK(time(NULL) - begin < 10 && mailbox.aborts == 1 && mailbox.receives == NULL);
  /* The first error stays. */
  CHECK_REFUSED(tessera_attention_create(comm, plan, NULL, &attention), TESSERA_DEADLINE_EXCEEDED, "rank 0 has waited");
  CHECK(mailbox.aborts == 1);
  tessera_comm_destroy(comm);
  mailbox_free(&mailbox);

  /* Rank 1 is known to be dead: no need to wait for the deadline. */
  mailbox_init(&mailbox);
  comm = make_comm(0, NULL);
  mailbox.dead = 1;
  CHECK_REFUSED(tessera_attention_create(comm, plan, NULL, &attention), TESSERA_UNAVAILABLE,
                "rank 1 is gone, as the callback 'alive' says");
  tessera_comm_destroy(comm);
  mailbox_free(&mailbox);

  /* Rank 1 gives up by itself and tells through abort. */
  mailbox_init(&mailbox);
  comm = make_comm(0, NULL);
  tessera_comm* other = make_comm(1, NULL);
  CHECK_OK(tessera_comm_abort(other));
  CHECK(mailbox.aborts == 1);
  CHECK_REFUSED(tessera_attention_create(comm, plan, NULL, &attention), TESSERA_UNAVAILABLE, "rank 1 is gone");
  tessera_comm_destroy(other);
  tessera_comm_destroy(comm);
  mailbox_free(&mailbox);

  /* A function fails. */
  mailbox_init(&mailbox);
  comm = make_comm(0, with_failing_test);
  CHECK_REFUSED(tessera_attention_create(comm, plan, NULL, &attention), TESSERA_UNAVAILABLE,
                "the callback 'test' of rank 0 returned 17");
  tessera_comm_destroy(comm);
  mailbox_free(&mailbox);

  /* Ranks with different plans: both are told. */
  mailbox_init(&mailbox);
  comm = make_comm(0, NULL);
  other = make_comm(1, NULL);
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, create_other_plan, other) == 0);
  CHECK_REFUSED(tessera_attention_create(comm, plan, NULL, &attention), TESSERA_FAILED_PRECONDITION,
                "ranks disagree on the plan");
  CHECK(pthread_join(thread, NULL) == 0);
  tessera_comm_destroy(other);
  tessera_comm_destroy(comm);
  mailbox_free(&mailbox);

  tessera_plan_destroy(plan);
  puts("every failure ended in an error");
  return 0;
}
