/* A transport in memory, as a framework would bring its own: the functions of tessera_callbacks between threads. */
#ifndef TESSERA_TESTS_CAPI_MAILBOX_H_
#define TESSERA_TESTS_CAPI_MAILBOX_H_

#include <pthread.h>

#include "tessera.h"

struct message {
  struct message* next;
  int from, to;
  int64_t tag;
  size_t bytes;
  void* data; /* of a receive: its buffer; of a message that found none: a copy */
  int done;
};

struct mailbox {
  pthread_mutex_t mutex;
  struct message *messages, *receives; /* that found no partner yet, oldest first */
  int dead;                            /* this rank is reported dead; -1: none is */
  int aborts;                          /* calls of abort */
};

/* One rank's end; the context of its functions. */
struct mailbox_rank {
  struct mailbox* mailbox;
  int rank;
};

void mailbox_init(struct mailbox* mailbox);
void mailbox_free(struct mailbox* mailbox);
tessera_callbacks mailbox_callbacks(struct mailbox_rank* end, int size);

#endif
