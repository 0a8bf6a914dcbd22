#include "mailbox.h"

#include <stdlib.h>
#include <string.h>

/* Takes the oldest entry of one (from, to, tag) out of a list; NULL when there is none. */
static struct message* take(struct message** list, int from, int to, int64_t tag) {
  for (; *list != NULL; list = &(*list)->next) {
    struct message* const found = *list;
    if (found->from == from && found->to == to && found->tag == tag) {
      *list = found->next;
      return found;
    }
  }
  return NULL;
}

static struct message* append(struct message** list, int from, int to, int64_t tag, void* data, size_t bytes) {
  struct message* const entry = calloc(1, sizeof *entry);
  if (entry == NULL) return NULL;
  entry->from = from;
  entry->to = to;
  entry->tag = tag;
  entry->data = data;
  entry->bytes = bytes;
  while (*list != NULL) list = &(*list)->next;
  *list = entry;
  return entry;
}

static int mailbox_isend(void* context, const void* data, size_t bytes, int peer, int64_t tag, void** request) {
  const struct mailbox_rank* const end = context;
  struct mailbox* const box = end->mailbox;
  int code = 0;
  pthread_mutex_lock(&box->mutex);
  struct message* const receive = take(&box->receives, end->rank, peer, tag);
  if (receive != NULL) {
    if (receive->bytes != bytes) {
      code = 1;
    } else if (bytes > 0) {
      memcpy(receive->data, data, bytes);
    }
    receive->done = 1;
  } else {
    void* const copy = malloc(bytes + 1);
    if (copy != NULL && bytes > 0) memcpy(copy, data, bytes);
    if (copy == NULL || append(&box->messages, end->rank, peer, tag, copy, bytes) == NULL) code = 2;
  }
  pthread_mutex_unlock(&box->mutex);
  *request = NULL; /* the data is taken: nothing to wait for */
  return code;
}

static int mailbox_irecv(void* context, void* data, size_t bytes, int peer, int64_t tag, void** request) {
  const struct mailbox_rank* const end = context;
  struct mailbox* const box = end->mailbox;
  int code = 0;
  *request = NULL;
  pthread_mutex_lock(&box->mutex);
  struct message* const message = take(&box->messages, peer, end->rank, tag);
  if (message != NULL) {
    if (message->bytes != bytes) {
      code = 1;
    } else if (bytes > 0) {
      memcpy(data, message->data, bytes);
    }
    free(message->data);
    free(message);
  } else {
    *request = append(&box->receives, peer, end->rank, tag, data, bytes);
    if (*request == NULL) code = 2;
  }
  pthread_mutex_unlock(&box->mutex);
  return code;
}

static int mailbox_test(void* context, void* request, int* done) {
  const struct mailbox_rank* const end = context;
  struct message* const receive = request;
  *done = 1;
  if (receive == NULL) return 0;
  pthread_mutex_lock(&end->mailbox->mutex);
  *done = receive->done;
  pthread_mutex_unlock(&end->mailbox->mutex);
  if (*done) free(receive);
  return 0;
}

static int mailbox_cancel(void* context, void* request) {
  const struct mailbox_rank* const end = context;
  struct message* const receive = request;
  if (receive == NULL) return 0;
  pthread_mutex_lock(&end->mailbox->mutex);
  if (!receive->done) {
    struct message** list = &end->mailbox->receives;
    while (*list != NULL && *list != receive) list = &(*list)->next;
    if (*list != NULL) *list = receive->next;
  }
  pthread_mutex_unlock(&end->mailbox->mutex);
  free(receive);
  return 0;
}

static int mailbox_alive(void* context, int peer) {
  const struct mailbox_rank* const end = context;
  pthread_mutex_lock(&end->mailbox->mutex);
  const int alive = end->mailbox->dead != peer;
  pthread_mutex_unlock(&end->mailbox->mutex);
  return alive;
}

static void mailbox_abort(void* context, const char* reason) {
  const struct mailbox_rank* const end = context;
  (void)reason;
  pthread_mutex_lock(&end->mailbox->mutex);
  ++end->mailbox->aborts;
  end->mailbox->dead = end->rank; /* the peers see it through alive */
  pthread_mutex_unlock(&end->mailbox->mutex);
}

void mailbox_init(struct mailbox* mailbox) {
  memset(mailbox, 0, sizeof *mailbox);
  pthread_mutex_init(&mailbox->mutex, NULL);
  mailbox->dead = -1;
}

void mailbox_free(struct mailbox* mailbox) {
  while (mailbox->messages != NULL) {
    struct message* const next = mailbox->messages->next;
    free(mailbox->messages->data);
    free(mailbox->messages);
    mailbox->messages = next;
  }
  while (mailbox->receives != NULL) { /* of tests that failed */
    struct message* const next = mailbox->receives->next;
    free(mailbox->receives);
    mailbox->receives = next;
  }
  pthread_mutex_destroy(&mailbox->mutex);
}

tessera_callbacks mailbox_callbacks(struct mailbox_rank* end, int size) {
  tessera_callbacks callbacks = TESSERA_INIT(tessera_callbacks);
  callbacks.rank = end->rank;
  callbacks.size = size;
  callbacks.context = end;
  callbacks.isend = mailbox_isend;
  callbacks.irecv = mailbox_irecv;
  callbacks.test = mailbox_test;
  callbacks.cancel = mailbox_cancel;
  callbacks.alive = mailbox_alive;
  callbacks.abort = mailbox_abort;
  return callbacks;
}
